// A chat with a model, streamed.

import { $, el, fill, number, write } from "./dom.js";
import { call, lines, on, words } from "./live.js";
import { names, stateOf } from "./models.js";

const RULE = "━━━━━"; // before and after what the loading stream tells

let messages = [];
let asking = null; // AbortController
let drawState = () => {};

export function show(model) {
  offer(model || $("chat-model").value);
  if (model) history.replaceState(null, "", "#/chat"); // it has been chosen; another choice must stay
  $("question").focus();
}

export function hide() {} // the answer goes on

function offer(value) {
  const known = names({ withSelectors: true });
  if (value && !known.some(([id]) => id === value)) known.push([value, value]);
  fill($("chat-model"), known, value);
}

on("modelStatus", () => {
  offer($("chat-model").value);
  drawState();
});

$("chat-new").addEventListener("click", () => {
  asking?.abort();
  messages = [];
  $("talk").replaceChildren();
  $("question").focus();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!asking) $("ask").requestSubmit();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (asking) asking.abort();
  else if ($("question").value.trim()) ask();
});

async function ask() {
  const model = $("chat-model").value;
  const question = { role: "user", content: $("question").value };
  const talk = messages;
  talk.push(question);
  $("talk").append(el("article", { class: "user" }, el("h2", {}, "You"), el("div", { class: "said" }, question.content)));
  $("question").value = "";
  const answer = new Answer(model);
  $("talk").append(answer.node);
  document.documentElement.scrollTop = document.documentElement.scrollHeight;
  const { signal } = (asking = new AbortController());
  write($("send"), "Stop");
  try {
    await stream(talk, model, answer, signal);
  } catch (error) {
    answer.fail(signal.aborted ? "stopped" : error.message);
  }
  answer.end();
  if (answer.content) talk.push({ role: "assistant", content: answer.content });
  else talk.pop(); // what was not answered is not asked again with the next question
  asking = null;
  write($("send"), "Send");
}

async function stream(talk, model, answer, signal) {
  const system = $("chat-system").value.trim();
  const temperature = $("chat-temperature").valueAsNumber;
  const tokens = $("chat-tokens").valueAsNumber;
  const body = {
    model,
    stream: true,
    stream_options: { include_usage: true },
    messages: [...(system ? [{ role: "system", content: system }] : []), ...talk],
    ...(Number.isNaN(temperature) ? {} : { temperature }),
    ...(Number.isNaN(tokens) ? {} : { max_tokens: tokens }),
  };
  const headers = { "Content-Type": "application/json" };
  const response = await call("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.headers.get("Content-Type")?.includes("event-stream")) {
    const text = await response.text();
    return answer.take(parsed(text) ?? {}) || answer.say(text);
  }
  for await (const line of lines(response)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    const event = parsed(data);
    if (event?.error) throw new Error(words(data));
    if (event) answer.take(event);
  }
  return true;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** An answer as it comes: what the load tells, what the model thinks, what it says. */
class Answer {
  content = "";
  #model;
  #began = performance.now();
  #first = 0;
  #told = ""; // all reasoning, that of the load before it included
  #usage = null;
  #timings = null;
  #isOver = false;
  #load = el("div", { class: "told quiet" });
  #loadBox = el("details", { open: true, hidden: true }, el("summary", {}, "Loading"), this.#load);
  #thought = el("div", { class: "said quiet" });
  #thoughtBox = el("details", { open: true, hidden: true }, el("summary", {}, "Reasoning"), this.#thought);
  #said = el("div", { class: "said" });
  #failure = el("p", { class: "failure", role: "alert" });
  #state = el("p", { class: "quiet", role: "status" });

  constructor(model) {
    this.#model = model;
    this.node = el("article", {}, el("h2", {}, model), this.#loadBox, this.#thoughtBox, this.#said, this.#failure, this.#state);
    drawState = () => this.#drawState();
    drawState();
  }

  /** Take an event or a whole answer; say whether there was anything in it. */
  take(event) {
    this.#usage = event.usage ?? this.#usage;
    this.#timings = event.timings ?? this.#timings;
    const part = event.choices?.[0]?.delta ?? event.choices?.[0]?.message;
    this.#reason(part?.reasoning_content ?? part?.reasoning);
    this.say(part?.content);
    return Boolean(part);
  }

  say(text) {
    if (typeof text !== "string" || !text) return;
    this.#first ||= performance.now();
    this.#loadBox.open = false;
    this.content += text;
    this.#grow(this.#said, text);
  }

  #reason(text) {
    if (typeof text !== "string" || !text) return;
    this.#told += text;
    const end = this.#told.startsWith(RULE) ? this.#told.indexOf(RULE, RULE.length) : 0;
    const split = end > 0 ? end + RULE.length : end === 0 ? 0 : this.#told.length;
    const [load, thought] = [this.#told.slice(0, split), this.#told.slice(split).trimStart()];
    write(this.#load, load.replaceAll(RULE, "").trim().replace(/\n{2,}/g, "\n"));
    write(this.#thought, thought);
    this.#loadBox.hidden = !load;
    this.#thoughtBox.hidden = !thought;
    if (thought) this.#loadBox.open = false;
    this.#grow(this.#thought, "");
  }

  #grow(node, text) {
    const page = document.documentElement;
    const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 200;
    node.append(text);
    this.#drawState();
    if (isAtEnd) page.scrollTop = page.scrollHeight;
  }

  fail(text) {
    this.#grow(this.#failure, text);
  }

  end() {
    this.#isOver = true;
    this.#loadBox.open = false;
    this.#drawState();
    drawState = () => {};
  }

  #drawState() {
    if (!this.#isOver) {
      const state = stateOf(this.#model);
      if (state && state !== "ready") return write(this.#state, `the model is ${state} …`);
      return write(this.#state, this.content || this.#told ? "answering …" : "waiting …");
    }
    const parts = [`${((performance.now() - this.#began) / 1000).toFixed(1)} s`];
    if (this.#first) parts.unshift(`first word after ${((this.#first - this.#began) / 1000).toFixed(1)} s`);
    if (this.#usage?.completion_tokens) parts.push(`${number(this.#usage.prompt_tokens ?? 0)} tokens in, ${number(this.#usage.completion_tokens)} out`);
    if (this.#timings?.predicted_per_second) parts.push(`${this.#timings.predicted_per_second.toFixed(1)} tokens/s`);
    return write(this.#state, parts.join(" · "));
  }
}
