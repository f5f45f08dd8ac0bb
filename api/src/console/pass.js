// One pass of maintenance that somebody has asked for: while it is at work, and what has come of it.

import { get } from "./api.js";
import { el, facts, link, redraw, right, rightHead, table, tableLink, tell } from "./dom.js";
import { loading, trouble } from "./forms.js";
import { bytes, code, count, dash, state, time } from "./words.js";

// Between two looks at one that is at work, in milliseconds.
const POLL = 1_000;

export const sum = (all, key) => all.reduce((total, one) => total + one[key], 0);

// Rewrites of files by why they are rewritten.
export function byReason(rewrites) {
  const found = new Map();
  for (const one of rewrites) found.set(one.reason, [...(found.get(one.reason) ?? []), one]);
  return found;
}

export async function passView(main, [id], signal) {
  const place = el("div", {}, loading("Pass"));
  main.append(el("h1", {}, "Pass of maintenance"), place);
  let timer = null;
  signal.addEventListener("abort", () => clearTimeout(timer));
  const load = async () => {
    try {
      const pass = await get(`maintenance/runs/${encodeURIComponent(id)}`, signal);
      redraw(place, shown(pass));
      if (pass.state === "running") timer = setTimeout(load, POLL);
      else tell(`The pass is ${pass.state}`);
    } catch (error) {
      if (error.name !== "AbortError") redraw(place, trouble(error));
    }
  };
  await load();
}

function shown(pass) {
  const numbers = ["Files", "Bytes", "Files removed", "Health"].map(rightHead);
  const head = ["Table", "Result", "Rewritten", ...numbers];
  return [
    facts([
      ["Id", el("code", {}, pass.id)],
      ["State", state(pass.state)],
      ["Code", code(pass.code)],
      ["By", pass.by],
      ["Reason", pass.reason],
      ["Begun", time(pass.begun_at)],
      ["Ended", pass.ended_at && time(pass.ended_at)],
    ]),
    pass.tables.length > 0 && table("What has come of it", head, pass.tables.map(row)),
    el("p", {}, el("a", { href: link(["maintenance"]) }, "All that was done")),
  ];
}

function row({ table: name, code: why, outcome, before, after }) {
  const rewrites = outcome?.rewrites ?? [];
  const fromTo = (before, after, shown) =>
    rewrites.length === 0 ? "–" : `${shown(sum(rewrites, before))} → ${shown(sum(rewrites, after))}`;
  const score = measured => (typeof measured?.score === "number" ? measured.score.toFixed(0) : "–");
  return [
    el("a", { href: tableLink(name) }, name),
    why ? code(why) : outcome ? (outcome.expired === false ? "expiry overtaken" : "done") : "nothing to do",
    dash([...byReason(rewrites).keys()].join(", ") || null),
    right(fromTo("input_files", "output_files", count)),
    right(fromTo("input_bytes", "output_bytes", bytes)),
    right(count(outcome?.removed_files)),
    right(after ? `${score(before)} → ${score(after)}` : score(before)),
  ];
}
