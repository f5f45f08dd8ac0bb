// Rows as they came: an object's members by their own text, since a number of 64 bits or an exact decimal is another one
// once JavaScript has read it.

import { button, el } from "./dom.js";

// Characters of a value that are shown at once.
const SHOWN = 200;

// Pairs of a name and the text of its value, of one JSON object. Scanned and not matched: a value may have megabytes.
export function members(line) {
  const found = [];
  let [depth, name, begin] = [0, null, 0];
  for (let at = 0; at < line.length; at += 1) {
    const mark = line[at];
    if (mark === '"') {
      const end = stringEnd(line, at);
      if (depth === 1 && name === null) name = JSON.parse(line.slice(at, end));
      at = end - 1;
    } else if (mark === ":" && depth === 1) {
      begin = at + 1;
    } else if ((mark === "," || mark === "}") && depth === 1) {
      if (name !== null) found.push([name, line.slice(begin, at).trim()]);
      name = null;
      depth -= mark === "}" ? 1 : 0;
    } else if (mark === "{" || mark === "[") {
      depth += 1;
    } else if (mark === "}" || mark === "]") {
      depth -= 1;
    }
  }
  return found;
}

// Behind the quote that ends the string: one with an even number of backslashes before it.
function stringEnd(line, begin) {
  for (let at = line.indexOf('"', begin + 1); at !== -1; at = line.indexOf('"', at + 1)) {
    let back = at;
    while (line[back - 1] === "\\") back -= 1;
    if ((at - back) % 2 === 0) return at + 1;
  }
  return line.length;
}

// A value without a text of its own is set apart from the text that says the same.
export function cell(text) {
  if (text === undefined) return el("td", { class: "quiet" }, "–");
  if (text === "null") return el("td", {}, el("i", { class: "quiet" }, "null"));
  if (!text.startsWith('"')) return el("td", { class: /^[{[]/.test(text) ? "" : "right" }, cut(text));
  const value = JSON.parse(text);
  return el("td", {}, value === "" ? el("i", { class: "quiet" }, "empty") : cut(value));
}

function cut(value) {
  const characters = [...value];
  if (characters.length <= SHOWN) return el("span", { class: "value" }, value);
  const place = el("span", { class: "value" }, characters.slice(0, SHOWN).join(""), " … ");
  const all = button(
    `all ${characters.length} characters`,
    () => place.replaceChildren(...el("span", {}, value).childNodes),
    { class: "small" },
  );
  place.append(all);
  return place;
}
