// Elements out of values. Whatever comes from outside becomes a text node here and never markup, and what cannot be seen
// in a text, or turns its direction round, is written out by its number.

const SVG = "http://www.w3.org/2000/svg";

// Controls, marks of direction, what has no width, tags: a name or a cell may look like another one by them.
const UNSEEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5" +
    "\\u180b-\\u180f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb" +
    "\\ud800-\\udfff\\u{e0000}-\\u{e0fff}]",
  "u",
);

function pieces(text) {
  const found = [];
  let plain = "";
  for (const character of text) {
    if (!UNSEEN.test(character)) {
      plain += character;
      continue;
    }
    const number = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    found.push(plain, el("span", { class: "unprintable" }, `U+${number}`));
    plain = "";
  }
  return [...found, plain].filter(piece => piece !== "");
}

function put(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) parent.append(child);
    else parent.append(...pieces(String(child)));
  }
  return parent;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  return element;
}

// Attributes that are functions listen to the event of that name.
export function el(name, attributes = {}, ...children) {
  return put(set(document.createElement(name), attributes), children);
}

export function svg(name, attributes = {}, ...children) {
  return put(set(document.createElementNS(SVG, name), attributes), children);
}

// For looks by themselves: what stands there is left alone where it is the same already, or where somebody is marking a text in it; the focus stays
// on the element of the same id.
export function redraw(parent, ...children) {
  const next = put(document.createElement("div"), children);
  const now = document.createElement("div");
  const marked = document.getSelection();
  if (parent.hasChildNodes() && !marked.isCollapsed && marked.containsNode(parent, true)) return;
  now.append(...[...parent.childNodes].map(node => node.cloneNode(true)));
  if (now.isEqualNode(next)) return;
  const focus = parent.contains(document.activeElement) ? document.activeElement.id : "";
  const [left, top] = [parent.scrollLeft, parent.scrollTop];
  parent.replaceChildren(...next.childNodes);
  [parent.scrollLeft, parent.scrollTop] = [left, top];
  if (focus !== "") document.getElementById(focus)?.focus({ preventScroll: true });
}

// Rows are lists of cells. The box scrolls by itself, so that the page never gets wider than a phone.
export function table(label, head, rows, attributes = {}) {
  const heading = name => (name instanceof HTMLTableCellElement ? name : el("th", { scope: "col" }, name));
  const cell = value => (value instanceof HTMLTableCellElement ? value : el("td", {}, value));
  const line = row => (row instanceof HTMLTableRowElement ? row : el("tr", {}, row.map(cell)));
  const grid = el("table", {}, el("thead", {}, el("tr", {}, head.map(heading))), el("tbody", {}, rows.map(line)));
  return el("div", { class: "scrolls", role: "region", "aria-label": label, tabindex: "0", ...attributes }, grid);
}

// Of numbers.
export const right = (...children) => el("td", { class: "right" }, ...children);
export const rightHead = name => el("th", { scope: "col", class: "right" }, name);

// Pairs of a name and a value; pairs without a value are left out.
export function facts(pairs) {
  const there = pairs.filter(([, value]) => value !== null && value !== undefined && value !== false);
  return el(
    "dl",
    {},
    there.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

export function button(name, act, attributes = {}) {
  return el("button", { type: "button", click: act, ...attributes }, name);
}

// An address below this page; its parts may be anything.
export function link(parts, query = {}) {
  const path = parts.map(encodeURIComponent).join("/");
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value)).toString();
  return `#/${path}${asked === "" ? "" : `?${asked}`}`;
}

export function tableLink(name, query) {
  const dot = name.indexOf(".");
  return link(["tables", name.slice(0, dot), name.slice(dot + 1)], query);
}

// For those who do not see what has changed.
export function tell(text) {
  document.getElementById("told").textContent = text;
}
