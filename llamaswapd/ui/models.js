// The models: how they are, what they use, and what can be done with them.

import { $, bytes, el, fill, gathered, keyed, notice, number, span, write } from "./dom.js";
import { call, get, on } from "./live.js";

let models = []; // as `modelStatus` has them
let selectors = []; // rows of /v1/models
let running = new Map(); // model → row of /running
let askedAt = 0; // when that was, by our clock
let clockAheadMs = 0; // the daemon's clock against ours
let isShown = false;
const loads = new Map(); // model → AbortController, of those that we load
const failures = new Map(); // model → why it could not be loaded

/** All models there are, for other views: [id, text] pairs. */
export function names({ withSelectors = false } = {}) {
  const rows = models.map(({ id, name }) => [id, name && name !== id ? `${name} (${id})` : id]);
  return withSelectors ? [...rows, ...selectors.map(({ id }) => [id, id])] : rows;
}

export const ours = () => models.filter(({ peerID }) => !peerID).map(({ id }) => [id, id]);

export const stateOf = (id) => models.find((model) => model.id === id)?.state ?? "";

export function show() {
  isShown = true;
  draw();
  look();
}

export function hide() {
  isShown = false;
}

// ---- what the daemon says

on("modelStatus", (rows) => {
  models = rows;
  for (const { id, state } of rows) if (state === "ready") failures.delete(id);
  draw();
  look();
  if (selectors.length) lookForSelectors();
});
on("inflight", () => lookLater());
on("open", () => {
  lookForProfiles();
  lookForSelectors();
});
on("profileChanged", ({ active }) => {
  $("profile").value = active ?? "";
  lookForProfiles();
  lookForSelectors();
});

// It costs a line in the access log, so it is asked when something has happened, and rarely otherwise.
const look = gathered(1000, async () => {
  if (!isShown || document.hidden) return;
  if (!models.some(({ state }) => state && state !== "stopped")) running = new Map();
  else {
    try {
      const response = await call("/running");
      clockAheadMs = Date.parse(response.headers.get("Date")) - Date.now() || 0;
      running = new Map((await response.json()).running.map((row) => [row.model, row]));
      askedAt = Date.now();
    } catch {
      return; // the events say that the daemon is away
    }
  }
  draw();
});
const lookLater = gathered(5000, look);
setInterval(() => running.size && look(), 15000);
setInterval(() => isShown && !document.hidden && running.size && draw(), 1000);
document.addEventListener("visibilitychange", () => look());

const lookForSelectors = gathered(1000, async () => {
  try {
    const { data } = await get("/v1/models");
    selectors = data.filter(({ meta }) => ["selector", "profile"].includes(meta?.llamaswap?.type));
    draw();
  } catch {
    // as above
  }
});

async function lookForProfiles() {
  const { active, profiles } = await get("/api/profiles").catch(() => ({ active: null, profiles: [] }));
  $("profile-field").hidden = !profiles.length;
  fill($("profile"), [["", "none"], ...profiles.map(({ id }) => [id, id])], active ?? "");
  const profile = profiles.find(({ id }) => id === active);
  const pins = Object.entries(profile?.pins ?? {}).map(([from, to]) => (to ? `${from} → ${to}` : `${from} disabled`));
  $("pins").hidden = !profile;
  write($("pins"), profile ? [profile.description, pins.join(", ")].filter(Boolean).join(" · ") : "");
}

// ---- what it is asked to do

/** Load a model; who gives up aborts that. */
async function load(id) {
  const giveUp = new AbortController();
  loads.set(id, giveUp);
  failures.delete(id);
  draw();
  try {
    await call(`/api/models/load/${encodeURIComponent(id)}`, { method: "POST", signal: giveUp.signal });
  } catch (error) {
    if (!giveUp.signal.aborted) failures.set(id, String(error.message));
  }
  loads.delete(id);
  draw();
  look();
}

const post = (path) => call(path, { method: "POST" }).catch((error) => notice(error.message));

$("unload-all").addEventListener("click", () => post("/api/models/unload"));
$("profile").addEventListener("change", async ({ target }) => {
  const body = JSON.stringify({ name: target.value || null });
  await call("/api/profiles/active", { method: "PUT", body }).catch((error) => notice(error.message));
  lookForProfiles();
});
$("model-filter").addEventListener("input", () => draw());

// ---- drawing

function draw() {
  if (!isShown) return;
  const wanted = $("model-filter").value.toLowerCase();
  const has = (row) => [row.id, row.name, row.description, ...(row.aliases ?? [])].join("\n").toLowerCase().includes(wanted);
  const found = models.filter(has);
  const [local, peers] = [found.filter(({ peerID }) => !peerID), found.filter(({ peerID }) => peerID)];
  const chosen = selectors.filter(has);
  keyed($("model-list"), local, ({ id }) => id, modelCard);
  keyed($("peer-list"), peers, ({ id }) => id, () => nameCard(({ peerID }) => `of peer ${peerID}`));
  keyed($("selector-list"), chosen, ({ id }) => id, () => nameCard(selectorFacts));
  $("peers").hidden = !peers.length;
  $("selectors").hidden = !chosen.length;
  $("no-models").hidden = found.length + chosen.length > 0;
  $("no-models").textContent = models.length ? "None with these letters." : "The configuration has no models.";
  $("unload-all").disabled = !models.some(({ state }) => state && state !== "stopped");
}

function modelCard({ id }) {
  const path = encodeURIComponent(id);
  const title = el("strong");
  const code = el("code");
  const badge = el("span");
  const about = el("p", { class: "about" });
  const facts = el("p", { class: "quiet" });
  const failure = el("p", { class: "failure", role: "alert" });
  const button = el("button", { type: "button" });
  const actions = {
    load: () => load(id),
    "give up": () => loads.get(id)?.abort(),
    unload: () => post(`/api/models/unload/${path}`),
  };
  button.addEventListener("click", () => actions[button.dataset.does]());
  const open = el("a", { href: id === "comfyui_auto" ? "/comfyui/" : `/upstream/${path}/`, textContent: "Open" });
  const log = el("a", { href: `#/logs/${path}`, textContent: "Log" });
  const chat = el("a", { href: `#/chat/${path}`, textContent: "Chat" });
  const card = el("li", {},
    el("div", { class: "head" }, title, code, badge), about, facts, failure,
    el("div", { class: "tools" }, button, chat, log, open));
  card.show = (model) => {
    write(title, model.name || model.id);
    write(code, model.name && model.name !== model.id ? model.id : "");
    const state = model.state === "stopped" && loads.has(id) ? "queued" : model.state;
    badge.className = `state ${state}`;
    write(badge, state);
    write(about, model.description);
    write(facts, modelFacts(model).join(" · "));
    write(failure, failures.get(id) ?? "");
    const does = loads.has(id) && model.state !== "ready" ? "give up" : model.state === "stopped" ? "load" : "unload";
    button.dataset.does = does;
    write(button, does[0].toUpperCase() + does.slice(1));
    button.setAttribute("aria-label", `${button.textContent} ${id}`);
    button.disabled = model.state === "stopping" && does === "unload";
  };
  return card;
}

function modelFacts({ id, unlisted, aliases, capabilities, context_length: context, state }) {
  const facts = [];
  const row = state === "stopped" ? null : running.get(id);
  const now = Date.now() + clockAheadMs;
  const ago = (time) => span((now - Date.parse(time)) / 1000);
  if (row) {
    if (row.since) facts.push(`${state} for ${ago(row.since)}`);
    if (row.memory_bytes) facts.push(bytes(row.memory_bytes));
    if (row.cpu_s >= 1) facts.push(`${number(Math.round(row.cpu_s))} s of CPU`);
    if (row.in_flight) facts.push(`${row.in_flight} in flight`);
    if (row.waiting) facts.push(`${row.waiting} waiting`);
    if (row.last_used && !row.in_flight) facts.push(`last used ${ago(row.last_used)} ago`);
    const left = row.idle_unload_in_s;
    if (typeof left === "number") facts.push(`unloads in ${span(left - (Date.now() - askedAt) / 1000)}`);
    if (row.unit) facts.push(row.unit);
    if (row.pid) facts.push(`pid ${row.pid}`);
  }
  if (aliases) facts.push(`also ${aliases.join(", ")}`);
  if (context) facts.push(`context ${number(context)}`);
  if (capabilities) facts.push(Object.keys(capabilities).join(", ").replaceAll("_", " "));
  if (unlisted) facts.push("unlisted");
  return facts;
}

function nameCard(factsOf) {
  const title = el("strong");
  const badge = el("span");
  const about = el("p", { class: "about" });
  const facts = el("p", { class: "quiet" });
  const chat = el("a", { textContent: "Chat" });
  const card = el("li", {}, el("div", { class: "head" }, title, badge), about, facts, el("div", { class: "tools" }, chat));
  card.show = (row) => {
    write(title, row.id);
    const isLoaded = row.status?.value === "loaded";
    badge.className = isLoaded ? "state ready" : "";
    write(badge, isLoaded ? "loaded" : "");
    write(about, row.description ?? "");
    write(facts, factsOf(row));
    chat.href = `#/chat/${encodeURIComponent(row.id)}`;
  };
  return card;
}

function selectorFacts({ meta: { llamaswap: facts } }) {
  return facts.type === "profile" ? "a pin of the active profile" : `${facts.strategy}: ${(facts.targets ?? []).join(", ")}`;
}
