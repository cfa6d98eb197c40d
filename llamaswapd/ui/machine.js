// The machine: what it is, and how busy it has been in the last hour.

import { $, bytes, el, keyed, svg, write } from "./dom.js";
import { call, get } from "./live.js";

const HOUR_MS = 3600_000;
const LOOK_EVERY_MS = 5000;
const MIB = 1024 * 1024;

let timer = 0;
let samples = []; // {at, …} of the whole machine
let gpuSamples = [];

export function show() {
  if (timer) return;
  timer = setInterval(look, LOOK_EVERY_MS);
  drawHardware();
  look();
}

export function hide() {
  clearInterval(timer);
  timer = 0;
}

// ---- what it is

async function drawHardware() {
  let facts;
  try {
    facts = hardwareFacts(await get("/api/hardware"));
  } catch (error) {
    facts = [["Hardware", error.message]];
  }
  $("hardware").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function hardwareFacts({ cpu, memory, operating_system: system, architecture, environment, accelerators = [] }) {
  const cores = [[cpu?.socket_count, "sockets"], [cpu?.physical_core_count, "cores"], [cpu?.logical_thread_count, "threads"]];
  const sized = cores.filter(([count]) => count).map(([count, what]) => `${count} ${count === 1 ? what.slice(0, -1) : what}`);
  const facts = [
    ["Processor", [cpu?.model ?? cpu?.vendor, ...sized].filter(Boolean).join(" · ")],
    ["Memory", bytes(memory?.capacity_bytes)],
    ["System", [system?.name, system?.version].filter(Boolean).join(" ")],
    ["Kernel", [system?.kernel, architecture?.raw_name ?? architecture?.name].filter(Boolean).join(" · ")],
    ["Environment", [environment?.kind?.replaceAll("_", " "), environment?.name].filter(Boolean).join(" · ")],
    ...accelerators.map(({ index, kind, vendor, model, memory: own, driver, power_limit_watts: watts }) => [
      `${kind === "other" ? "Accelerator" : kind.toUpperCase()} ${index}`,
      [model ?? vendor, bytes(own?.capacity_bytes), driver?.version && `driver ${driver.version}`, watts && `${watts} W`]
        .filter(Boolean).join(" · "),
    ]),
  ];
  return facts.filter(([, value]) => value);
}

// ---- how busy it is

async function look() {
  if (document.hidden) return;
  const after = samples.at(-1)?.timestamp;
  try {
    const query = after ? `?after=${encodeURIComponent(after)}` : "";
    const news = await (await call(`/api/performance${query}`)).json();
    samples = recent([...samples, ...(news.sys_stats ?? [])]);
    gpuSamples = recent([...gpuSamples, ...(news.gpu_stats ?? [])]);
    say(samples.length ? "" : "No sample has been taken yet.");
  } catch (error) {
    say(error.message.includes('"enabled":false') ? "performance.disabled is set in the configuration." : error.message);
  }
  keyed($("charts"), charts(), ({ title }) => title, chart);
}

function say(text) {
  $("no-samples").hidden = !text;
  write($("no-samples"), text);
}

/** The samples of the last hour by the newest one's clock, with their time as a number. */
function recent(rows) {
  for (const row of rows) row.at ??= Date.parse(row.timestamp);
  const newest = rows.at(-1)?.at ?? 0;
  return rows.filter(({ at }) => at > newest - HOUR_MS);
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);

function charts() {
  const last = samples.at(-1);
  if (!last) return [];
  const line = (rows, value) => rows.map((row) => [row.at, value(row)]);
  const found = [
    { title: "CPU", unit: "%", top: 100, points: line(samples, (row) => mean(row.cpu_util_per_core ?? [])) },
    { title: "Memory", unit: "MiB", top: last.mem_total_mb, points: line(samples, (row) => row.mem_used_mb) },
    { title: "Load, 1 min", unit: "", top: Math.max(last.cpu_util_per_core?.length ?? 1, ...samples.map((row) => row.load_avg_1)), points: line(samples, (row) => row.load_avg_1) },
    { title: "Network", unit: "B/s", top: 0, points: rates(samples) },
  ];
  if (last.swap_total_mb) {
    found.push({ title: "Swap", unit: "MiB", top: last.swap_total_mb, points: line(samples, (row) => row.swap_used_mb) });
  }
  for (const id of new Set(gpuSamples.map((row) => row.id))) {
    const rows = gpuSamples.filter((row) => row.id === id);
    const gpu = rows.at(-1);
    const title = `GPU ${id}`;
    const also = [gpu.name, gpu.temp_c > 0 && `${gpu.temp_c} °C`, gpu.power_draw_w > 0 && `${Math.round(gpu.power_draw_w)} W`];
    found.push({ title, unit: "%", top: 100, points: line(rows, (row) => row.gpu_util_pct), also: also.filter(Boolean).join(" · ") });
    found.push({ title: `${title} memory`, unit: "MiB", top: gpu.mem_total_mb, points: line(rows, (row) => row.mem_used_mb) });
  }
  return found;
}

/** What all interfaces together moved, both ways, per second between two samples. */
function rates(rows) {
  const moved = ({ net_io: ports }) => (ports ?? []).reduce((sum, port) => sum + port.bytes_recv + port.bytes_sent, 0);
  return rows.slice(1).map((row, before) => {
    const seconds = (row.at - rows[before].at) / 1000;
    return [row.at, Math.max(0, moved(row) - moved(rows[before])) / (seconds || 1)];
  });
}

function chart() {
  const [width, height] = [300, 60];
  const value = el("span", { class: "value" });
  const also = el("p", { class: "quiet" });
  const title = el("h3");
  const area = svg("polygon", { class: "area" });
  const curve = svg("polyline", { class: "curve" });
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" }, area, curve);
  const figure = el("figure", {}, el("div", { class: "head" }, title, value), picture, also);
  figure.show = ({ title: text, unit, top, points, also: more = "" }) => {
    write(title, text);
    write(value, points.length ? measured(points.at(-1)[1], unit, top) : "");
    write(also, more);
    const newest = points.at(-1)?.[0] ?? 0;
    const long = Math.max(60_000, newest - (points[0]?.[0] ?? 0));
    const high = top || Math.max(1, ...points.map(([, y]) => y));
    const place = ([at, y]) => `${(width - (width * (newest - at)) / long).toFixed(1)},${(height - 1 - ((height - 2) * Math.min(y, high)) / high).toFixed(1)}`;
    const path = points.map(place);
    curve.setAttribute("points", path.join(" "));
    area.setAttribute("points", path.length ? [`${path[0].split(",")[0]},${height}`, ...path, `${width},${height}`].join(" ") : "");
    picture.setAttribute("aria-label", `${text}, the last ${Math.round(long / 60_000)} minutes, now ${value.textContent}`);
  };
  return figure;
}

function measured(number, unit, top) {
  if (unit === "%") return `${Math.round(number)} %`;
  if (unit === "MiB") return `${bytes(number * MIB)} of ${bytes(top * MIB)}`;
  return unit === "B/s" ? `${bytes(number)}/s` : number.toFixed(2);
}
