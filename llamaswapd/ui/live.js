// What the daemon says: answers to questions, and the events of /api/events for whoever listens.

import { $ } from "./dom.js";

/** Ask for something; a refusal becomes an Error with the daemon's words. */
export async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { Accept: "application/json", ...options.headers } });
  if (!response.ok) throw new Error(words(await response.text()) || `${response.status} ${response.statusText}`);
  return response;
}

export const get = async (path) => (await call(path)).json();

/** The message in the body of an error. */
export function words(text) {
  try {
    const { error } = JSON.parse(text);
    return error?.message ?? (typeof error === "string" ? error : text);
  } catch {
    return text.trim();
  }
}

/** How long to wait before the next try: 1 s, doubling to 5 s. */
export class Backoff {
  #next = 1000;

  reset() {
    this.#next = 1000;
  }

  take() {
    const ms = this.#next;
    this.#next = Math.min(2 * ms, 5000);
    return ms;
  }
}

// ---- events

const listeners = new Map();
const backoff = new Backoff();

/** Have `heed` called with the data of every event of a type; `open` is ours: (again) connected. */
export function on(type, heed) {
  listeners.set(type, [...(listeners.get(type) ?? []), heed]);
}

function tell(type, data) {
  for (const heed of listeners.get(type) ?? []) heed(data);
}

/** Follow the events, for as long as the page is there. */
export function follow() {
  const source = new EventSource("/api/events");
  source.onopen = () => {
    backoff.reset();
    show("live", "connected");
    tell("open");
  };
  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (listeners.has(event.type)) tell(event.type, JSON.parse(event.data));
  };
  source.onerror = () => {
    source.close();
    show("lost", "reconnecting …");
    setTimeout(follow, backoff.take());
  };
}

function show(state, text) {
  $("link").className = `link ${state}`;
  $("link").textContent = text;
}

/** Yield a body's lines as they come. */
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}
