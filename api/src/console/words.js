// How values are written: states, codes, times, counts. One word for each, the same as on the command line.

import { el, link } from "./dom.js";
import { now } from "./api.js";

// A shape beside each word, for who does not see the colours.
const STATES = {
  new: ["○", "quiet"],
  copying: ["◐", "busy"],
  streaming: ["●", "good"],
  paused: ["‖", "warn"],
  paused_diverged: ["‖", "warn"],
  quarantined: ["▲", "bad"],
  halted: ["■", "bad"],
  forward: ["▶", "busy"],
  back: ["◀", "busy"],
  rolled_back: ["‖", "warn"],
  released: ["●", "good"],
  closed: ["○", "quiet"],
  running: ["▶", "busy"],
  done: ["●", "good"],
  failed: ["■", "bad"],
  equal: ["●", "good"],
  different: ["■", "bad"],
};

export function state(word) {
  const [shape, kind] = STATES[word] ?? ["○", "quiet"];
  return el("span", { class: `state ${kind}` }, el("span", { "aria-hidden": "true" }, shape), " ", word);
}

export const code = word => word && el("a", { class: "code", href: link(["codes", word]) }, word);

export const dash = value => value ?? "–";

export const count = number => (number === null || number === undefined ? "–" : Number(number).toLocaleString("en"));

// Of one table: how many, and what they are called.
export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; number >= 1024 && unit < units.length - 1; unit += 1) number /= 1024;
  return `${unit === 0 ? number : number.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  for (const [unit, length] of [
    ["d", 86_400],
    ["h", 3_600],
    ["min", 60],
  ]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

// Seconds since then, by the service's clock and not by the viewer's.
export const since = time => Math.max(0, (now() - Date.parse(time)) / 1000);

export function time(text) {
  if (!text) return "–";
  return el("time", { datetime: text }, text.replace("T", " ").replace(/\.\d+/, ""));
}

// A snapshot in a line without elements, such as of a choice.
export const plain = one => `${one.committed_at.replace("T", " ").replace(/\.\d+/, "")} ${one.kind} ${one.snapshot_id}`;

export const ago = text => (text ? [duration(since(text)), " ago"] : "–");

// Inserted, updated, deleted, each with its sign; in words for who does not see it.
export function changes({ inserted, updated, deleted }) {
  if (inserted === null || inserted === undefined) return "–";
  const told = `${count(inserted)} inserted, ${count(updated)} updated, ${count(deleted)} deleted`;
  const part = (sign, number, kind) => el("span", { class: number > 0 ? kind : "quiet" }, `${sign}${count(number)}`);
  const parts = [part("+", inserted, "plus"), " ", part("~", updated, "tilde"), " ", part("-", deleted, "minus")];
  return el("span", { role: "img", "aria-label": told, title: told }, parts);
}
