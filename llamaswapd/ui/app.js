// Which view is shown. Views are told when they come and go: show(argument), hide().

import { $ } from "./dom.js";
import { follow, get } from "./live.js";
import * as chat from "./chat.js";
import * as logs from "./logs.js";
import * as machine from "./machine.js";
import * as models from "./models.js";
import * as requests from "./requests.js";

const VIEWS = { models, requests, logs, machine, chat };

// What llama-swap calls them: links to its pages lead to ours.
const OTHER_NAMES = { activity: "requests", performance: "machine", hardware: "machine", playground: "chat" };

let shown = "";

function route() {
  const path = location.hash.startsWith("#/") ? location.hash.slice(2) : location.pathname.replace(/^\/ui\/?/, "");
  const [word, argument = ""] = path.split("/");
  const name = OTHER_NAMES[word] ?? (word in VIEWS ? word : "models");
  if (name !== shown) change(name);
  VIEWS[name].show(decoded(argument));
}

function change(name) {
  const isFirst = shown === "";
  if (!isFirst) VIEWS[shown].hide();
  shown = name;
  for (const other of Object.keys(VIEWS)) $(other).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = $(name).querySelector("h1");
  document.title = `${title.textContent} · llamaswapd`;
  if (!isFirst) title.focus({ preventScroll: true });
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $(shown).querySelector("h1").focus();
});
window.addEventListener("hashchange", route);
route();
follow();
get("/api/version").then(({ version }) => { document.querySelector(".brand").title = `version ${version}`; }, () => {});
