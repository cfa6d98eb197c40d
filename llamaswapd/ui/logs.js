// The logs, as they are written.

import { $, el, fill, gathered } from "./dom.js";
import { Backoff, call, lines, on } from "./live.js";
import { ours } from "./models.js";

const KEPT = 5000; // lines
const COLOURS = /\x1b\[[\d;]*[A-Za-z]/g; // for terminals

let source = "";
let reading = null; // AbortController
let kept = [];
let fresh = []; // not drawn yet
let isPaused = false;

const box = $("log");

export function show(argument) {
  offer(argument || source || "proxy");
  follow($("log-source").value);
}

export function hide() {
  reading?.abort();
  reading = null;
}

function offer(value) {
  const models = ours();
  if (value !== "proxy" && value !== "upstream" && !models.some(([id]) => id === value)) models.push([value, value]);
  fill($("log-source"), [["proxy", "the proxy"], ["upstream", "all models"], ...models], value);
}

on("modelStatus", () => source && offer(source));
$("log-source").addEventListener("change", ({ target }) => { location.hash = `#/logs/${encodeURIComponent(target.value)}`; });
$("log-filter").addEventListener("input", redraw);
$("log-wrap").addEventListener("change", ({ target }) => box.classList.toggle("wrap", target.checked));
$("log-pause").addEventListener("click", () => {
  isPaused = !isPaused;
  $("log-pause").setAttribute("aria-pressed", isPaused);
  $("log-pause").textContent = isPaused ? "Go on" : "Pause";
  say("");
  draw();
});
$("log-clear").addEventListener("click", () => {
  kept = [];
  fresh = [];
  redraw();
});

function say(text) {
  $("log-state").textContent = text;
}

/** Read a log until another is wanted. Each connection begins with the history, so the lines begin anew with it. */
async function follow(wanted) {
  if (reading && wanted === source) return;
  reading?.abort();
  const { signal } = (reading = new AbortController());
  source = wanted;
  const backoff = new Backoff();
  while (!signal.aborted) {
    try {
      const response = await call(`/logs/stream/${encodeURIComponent(wanted)}`, { signal });
      kept = [];
      fresh = [];
      redraw();
      say("");
      backoff.reset();
      for await (const line of lines(response)) {
        if (signal.aborted) return;
        fresh.push(line.replace(COLOURS, ""));
        soon();
      }
      say("ended; reconnecting …");
    } catch (error) {
      if (signal.aborted) return;
      say(`${error.message}; trying again …`);
    }
    await new Promise((resolve) => { setTimeout(resolve, backoff.take()); });
  }
}

const soon = gathered(100, draw);

function draw() {
  if (fresh.length > KEPT) fresh = fresh.slice(-KEPT);
  if (isPaused) return say(fresh.length ? `${fresh.length} lines to come` : "");
  kept.push(...fresh);
  append(fresh);
  fresh = [];
  const surplus = kept.length - KEPT;
  if (surplus > 0) {
    const gone = kept.slice(0, surplus).filter(isWanted()).length;
    kept = kept.slice(surplus);
    for (let left = gone; left > 0; left -= 1) box.firstChild?.remove();
  }
}

function redraw() {
  box.replaceChildren();
  append(kept);
}

function isWanted() {
  const wanted = $("log-filter").value.toLowerCase();
  return (line) => line.toLowerCase().includes(wanted);
}

function append(more) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  box.append(...more.filter(isWanted()).map((line) => el("span", { class: kind(line) }, `${line}\n`)));
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

function kind(line) {
  if (/\bERROR\b/i.test(line)) return "error";
  return /\bWARN(ING)?\b/i.test(line) ? "warning" : "";
}
