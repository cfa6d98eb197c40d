// How things are put on the page. Whatever is shown is text: nothing here ever reads data as HTML.

export const $ = (id) => document.getElementById(id);

/** Make an element. Properties that are functions listen, `class` and what has a dash is an attribute. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "class" || name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Make an element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Have one child for each item, in their order. A child stays as long as its item, so that it keeps the focus. */
export function keyed(parent, items, keyOf, make) {
  const left = new Map([...parent.children].map((child) => [child.key, child]));
  items.forEach((item, at) => {
    const key = keyOf(item);
    let child = left.get(key);
    left.delete(key);
    if (!child) {
      child = make(item);
      child.key = key;
    }
    child.show(item);
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
  for (const child of left.values()) child.remove();
}

/** Set a text only if it is another one: who has selected it keeps the selection. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Give a <select> these [value, text] pairs; it stays at its value, or `value` if that is given. */
export function fill(select, pairs, value = select.value) {
  const wanted = JSON.stringify(pairs);
  if (select.wanted !== wanted) {
    select.wanted = wanted;
    select.replaceChildren(...pairs.map(([value, text]) => el("option", { value, textContent: text })));
  }
  if (pairs.some(([known]) => known === value)) select.value = value;
}

/** Call `work` soon, once for all that asked meanwhile, and at most every `ms`. Goes on in hidden tabs, unlike frames. */
export function gathered(ms, work) {
  let timer = 0;
  return () => {
    timer ||= setTimeout(() => {
      timer = 0;
      work();
    }, ms);
  };
}

let noticeTimer = 0;

/** Tell the user of something that went wrong. */
export function notice(text) {
  const line = $("notice");
  line.textContent = text;
  line.hidden = !text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { line.hidden = true; }, 12000);
}

// ---- numbers as people read them

export function bytes(count) {
  if (count === null || count === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

export const millis = (ms) => (ms < 10000 ? `${(ms / 1000).toFixed(ms < 1000 ? 3 : 2)} s` : span(ms / 1000));

export const number = (value) => value.toLocaleString("en");
