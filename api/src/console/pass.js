// One pass of maintenance that somebody has asked for: while it is at work, and what has come of it.

import { el, link, right, rightHead, table, tableLink } from "./dom.js";
import { runView } from "./run.js";
import { bytes, code, count, dash } from "./words.js";

export const sum = (all, key) => all.reduce((total, one) => total + one[key], 0);

// Rewrites of files by why they are rewritten.
export function byReason(rewrites) {
  const found = new Map();
  for (const one of rewrites) found.set(one.reason, [...(found.get(one.reason) ?? []), one]);
  return found;
}

export const passView = (main, [id], signal) =>
  runView(main, "Pass of maintenance", `maintenance/runs/${encodeURIComponent(id)}`, signal, shown);

function shown(pass) {
  const numbers = ["Files", "Bytes", "Files removed", "Health"].map(rightHead);
  const head = ["Table", "Result", "Rewritten", ...numbers];
  return [
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
