// The requests: those in flight, those that have ended, and what was said in one of them.

import { $, bytes, el, fill, gathered, keyed, millis, notice, number, span, write } from "./dom.js";
import { call, get, on } from "./live.js";
import { names } from "./models.js";

const SHOWN_AT_MOST = 200; // in flight
const PHASES = ["queued", "loading", "first_byte", "streaming"];

// Heading, what the daemon sorts by, and a cell's content.
const COLUMNS = [
  ["#", "id", captureButton],
  ["Time", "time", (row) => when(new Date(row.timestamp))],
  ["Model", "model", (row) => row.model],
  ["Path", "req_path", (row) => row.req_path],
  ["Status", "resp_status_code", (row) => statusCell(row)],
  ["In", "prompt", (row) => count(row.tokens.input_tokens)],
  ["Cached", "cached", (row) => count(row.tokens.cache_tokens)],
  ["Out", "generated", (row) => count(row.tokens.output_tokens)],
  ["Prompt/s", "prompt_speed", (row) => speed(row.tokens.prompt_per_second)],
  ["Out/s", "gen_speed", (row) => speed(row.tokens.tokens_per_second)],
  ["Took", "duration", (row) => took(row)],
];
const identity = ({ id, timestamp, has_capture: kept }) => `${id} ${timestamp} ${kept}`; // a restart counts from 1 again
const NUMBERS = new Set(["id", "prompt", "cached", "generated", "prompt_speed", "gen_speed"]);

const inflight = new Map(); // id → entry, with `at`: when we were told
let isShown = false;
let page = 1;
let sort = "id";
let order = "desc";

export function show() {
  isShown = true;
  drawInflight();
  fill($("activity-model"), [["", "all"], ...names()]);
  refresh();
}

export function hide() {
  isShown = false;
}

// ---- in flight

on("inflight", ({ operation, requests = [], request, id }) => {
  const at = Date.now();
  if (operation === "snapshot") inflight.clear();
  for (const entry of requests) inflight.set(entry.id, { ...entry, at });
  if (request) inflight.set(request.id, { ...request, at });
  if (operation === "remove") inflight.delete(id);
  soon();
});

const soon = gathered(100, drawInflight);
setInterval(() => inflight.size && drawInflight(), 1000);

function drawInflight() {
  if (!isShown || document.hidden) return;
  write($("inflight-count"), String(inflight.size));
  keyed($("inflight"), [...inflight.values()].slice(0, SHOWN_AT_MOST), identity, inflightRow);
}

function inflightRow({ id, model, method, req_path: path, remote_ip: ip, req_headers: headers }) {
  const time = el("td");
  const state = el("td");
  const cancel = el("button", {
    type: "button",
    textContent: "Cancel",
    "aria-label": `Cancel the request to ${model}`,
    click: () => call(`/api/inflight/${id}/cancel`, { method: "POST" }).catch((error) => notice(error.message)),
  });
  const client = el("td", { textContent: ip, title: headers?.["User-Agent"] ?? "" });
  const row = el("tr", {}, time, el("td", {}, model), el("td", {}, `${method} ${path}`), client, state, el("td", {}, cancel));
  row.show = (entry) => {
    write(time, span((entry.elapsed_ms + Date.now() - entry.at) / 1000));
    const isAnswered = Object.keys(entry.resp_headers ?? {}).length > 0;
    write(state, isAnswered ? `${bytes(entry.resp_bytes)} received` : "waiting for the model");
  };
  return row;
}

// ---- activity

on("activity", () => later());
on("open", () => later());
on("modelStatus", () => fill($("activity-model"), [["", "all"], ...names()]));

// Under load there is news all the time; of another page than the first, nobody wants rows that move.
const later = gathered(2000, () => isShown && !document.hidden && page === 1 && refresh());
document.addEventListener("visibilitychange", () => later());

$("activity-model").addEventListener("change", () => turnTo(1));
$("activity-limit").addEventListener("change", () => turnTo(1));
$("newer").addEventListener("click", () => turnTo(page - 1));
$("older").addEventListener("click", () => turnTo(page + 1));

function turnTo(number) {
  page = Math.max(1, number);
  refresh();
}

async function refresh() {
  const model = $("activity-model").value;
  const query = new URLSearchParams({ page, limit: $("activity-limit").value, sort, order, ...(model && { model }) });
  const ofModel = model ? `?${new URLSearchParams({ model })}` : "";
  try {
    const [rows, stats] = await Promise.all([
      get(`/api/metrics/activity?${query}`),
      get(`/api/metrics/stats${ofModel}`),
    ]);
    drawActivity(rows);
    drawStats(stats);
  } catch (error) {
    notice(`The activity cannot be read: ${error.message}`);
  }
}

function drawStats(stats) {
  const parts = [`${number(stats.total_requests)} requests`];
  const tokens = [["in", stats.total_input_tokens], ["cached", stats.total_cache_tokens], ["out", stats.total_output_tokens]];
  for (const [what, sum] of tokens) if (sum > 0) parts.push(`${number(sum)} tokens ${what}`);
  if (stats.gen_histogram) parts.push(`half of the answers faster than ${speed(stats.gen_histogram.p50)} tokens/s`);
  write($("stats"), parts.join(" · "));
}

function drawActivity({ data, total, total_pages: pages }) {
  if (!data.length && page > 1 && pages) return turnTo(pages);
  keyed($("activity-head"), COLUMNS, ([, key]) => key, heading);
  const longest = Math.max(1, ...data.map((row) => row.duration_ms));
  keyed($("activity"), data.map((row) => ({ ...row, longest })), identity, activityRow);
  write($("page"), total ? `page ${page} of ${pages}` : "nothing yet");
  $("newer").disabled = page <= 1;
  $("older").disabled = page >= pages;
}

function heading([text, key]) {
  const button = el("button", {
    type: "button",
    click: () => {
      order = sort === key && order === "desc" ? "asc" : "desc";
      sort = key;
      turnTo(1);
    },
  });
  const cell = el("th", { scope: "col", class: NUMBERS.has(key) ? "number" : "" }, button);
  cell.show = () => {
    const isSorted = sort === key;
    write(button, isSorted ? `${text} ${order === "desc" ? "↓" : "↑"}` : text);
    cell.setAttribute("aria-sort", isSorted ? `${order}ending` : "none");
  };
  return cell;
}

function activityRow(row) {
  const cells = COLUMNS.map(([, key, content]) => el("td", { class: NUMBERS.has(key) ? "number" : "" }, content(row)));
  const line = el("tr", {}, ...cells);
  if (row.has_capture) {
    line.className = "opens";
    line.addEventListener("click", () => String(getSelection()) || openCapture(line.row));
  }
  line.show = (row) => {
    line.row = row;
    const bar = line.querySelector(".bar");
    if (bar) bar.style.width = `${Math.max(1, (100 * row.duration_ms) / row.longest)}%`;
  };
  return line;
}

function captureButton(row) {
  if (!row.has_capture) return String(row.id);
  return el("button", {
    type: "button", class: "plain", textContent: String(row.id), "aria-label": `Open capture ${row.id}`,
    click: (event) => {
      event.stopPropagation();
      openCapture(row);
    },
  });
}

function statusCell(row) {
  const isError = row.resp_status_code >= 400 || row.error_msg;
  const text = el("span", { class: isError ? "failure" : "", textContent: String(row.resp_status_code) });
  return row.error_msg ? el("span", {}, text, el("span", { class: "why", title: row.error_msg }, row.error_msg)) : text;
}

/** The time of day, with the date of another day before it. */
function when(time) {
  const isToday = time.toDateString() === new Date().toDateString();
  return isToday ? time.toLocaleTimeString() : time.toLocaleString();
}

const count = (tokens) => (tokens > 0 ? number(tokens) : "–");
const speed = (rate) => (rate > 0 ? rate.toFixed(rate < 100 ? 1 : 0) : "–");

/** A request's time, and where it went. */
function took(row) {
  const cell = el("div", { class: "took" }, el("span", {}, millis(row.duration_ms)));
  if (row.queued_ms === undefined) return cell; // noted by llama-swap
  const parts = PHASES.map((phase) => [phase, row[`${phase}_ms`]]).filter(([, ms]) => ms > 0);
  cell.title = parts.map(([phase, ms]) => `${phase.replace("_", " ")} ${millis(ms)}`).join(", ");
  const bar = el("span", { class: "bar", role: "img", "aria-label": cell.title });
  for (const [phase, ms] of parts) {
    const part = el("i", { class: phase });
    part.style.flexGrow = ms;
    bar.append(part);
  }
  cell.append(bar);
  return cell;
}

// ---- a capture

const TEXT_AT_MOST = 200_000; // characters shown of a body; all of it can be saved

async function openCapture(row) {
  try {
    const capture = await get(`/api/captures/${row.id}`);
    write($("capture-title"), `${row.id} · ${row.model} · ${capture.req_path}`);
    $("capture-body").replaceChildren(
      ...half("Request", capture.req_headers, capture.req_body),
      ...half("Answer", capture.resp_headers, capture.resp_body),
    );
    $("capture").showModal();
  } catch (error) {
    notice(error.message);
  }
}

function half(title, headers, base64) {
  const names = Object.entries(headers ?? {}).sort();
  const list = el("dl", { class: "facts" }, ...names.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  const parts = [el("h3", {}, title), el("details", {}, el("summary", {}, `${names.length} headers`), list)];
  if (base64 === null) return [...parts, el("p", { class: "quiet" }, "The body was not kept.")];
  const body = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const file = URL.createObjectURL(new Blob([body]));
  $("capture").addEventListener("close", () => URL.revokeObjectURL(file), { once: true });
  const save = el("a", { href: file, download: title.toLowerCase(), textContent: "Save" });
  return [...parts, el("p", { class: "quiet" }, `${bytes(body.length)} `, save), ...shownBody(body)];
}

function shownBody(body) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(body);
  } catch {
    return [el("p", { class: "quiet" }, "It is no text.")];
  }
  const said = spoken(text);
  const shown = said === null ? [] : [el("h4", {}, "Text"), block(said), el("h4", {}, "As it came")];
  return [...shown, block(pretty(text))];
}

function block(text) {
  const rest = text.length - TEXT_AT_MOST;
  return el("pre", { class: "wrap", tabIndex: 0 }, rest > 0 ? `${text.slice(0, TEXT_AT_MOST)}\n… ${number(rest)} characters more` : text);
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** What the events of a stream say together, in the forms of OpenAI and Anthropic; null if it is no stream. */
function spoken(text) {
  const events = [...text.matchAll(/^data: ?(.*)$/gm)].map(([, data]) => data);
  if (!events.length) return null;
  let said = "";
  for (const data of events) {
    try {
      const event = JSON.parse(data);
      const delta = event.choices?.[0]?.delta ?? event.delta;
      const piece = typeof delta === "string" ? delta : delta?.content ?? delta?.text ?? event.choices?.[0]?.text;
      if (typeof piece === "string") said += piece;
    } catch {
      // [DONE]
    }
  }
  return said || null;
}
