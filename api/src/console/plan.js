// What a rollback would do, as its preview tells it, and what has moved since an earlier one.

import { el, facts, right, rightHead, table, tableLink } from "./dom.js";
import { code, count, dash, many } from "./words.js";

const sum = ({ tables }, key) => tables.reduce((all, one) => all + one[key], 0);

export function planTable(plan) {
  const row = one => [
    el("a", { href: tableLink(one.table) }, one.table),
    right(`+${count(one.inserted)}`),
    right(`~${count(one.updated)}`),
    right(`-${count(one.deleted)}`),
    right(count(one.snapshots_undone)),
    el("code", {}, `${one.position} → ${one.target_position ?? "unknown"}`),
    one.exits.join(", "),
  ];
  const numbers = ["Rows that come back", "change", "go", "Snapshots undone"].map(rightHead);
  const head = ["Table", ...numbers, "Position → target's", "Ways out"];
  return table("What the rollback would do", head, plan.tables.map(row));
}

export function planInWords(plan) {
  const [come, change, go] = ["inserted", "updated", "deleted"].map(key => sum(plan, key));
  return `${many(plan.tables.length, "table")}: ${many(come, "row")} come back, ${count(change)} change, ${count(go)} go`;
}

// Of tables: what was looked at and what stands there now, and the answer that has told so.
export function moves(before, after, cause) {
  const then = new Map(before.tables.map(one => [one.table, one]));
  const moved = after.tables.filter(one => then.get(one.table)?.head !== one.head);
  const told =
    cause &&
    facts([
      ["Code", code(cause.code)],
      ["Request", el("code", {}, cause.requestId)],
    ]);
  if (moved.length === 0)
    return el("div", { class: "note" }, el("p", {}, "Looked at again: no table has moved."), told);
  const row = one => {
    const old = then.get(one.table);
    return [
      one.table,
      el("code", {}, `${dash(old?.head)} → ${one.head}`),
      el("code", {}, `${dash(old?.position)} → ${dash(one.position)}`),
      right(count(one.snapshots_undone - (old?.snapshots_undone ?? 0))),
    ];
  };
  return el(
    "div",
    { class: "note" },
    el(
      "p",
      {},
      "These tables have moved since the preview before; nothing was changed. Below is what a rollback would do now.",
    ),
    table("What has moved", ["Table", "Head", "Position", rightHead("More snapshots")], moved.map(row)),
    told,
  );
}

export function lost(plan) {
  const without = plan.tables.filter(one => !one.exits.includes("replay")).map(one => one.table);
  return el(
    "ul",
    {},
    el(
      "li",
      {},
      `From the newest rows ${many(sum(plan, "deleted"), "row")} that came since the target go, and so do the newer values of ${many(sum(plan, "updated"), "row")}.`,
    ),
    el(
      "li",
      {},
      "No file and no snapshot is deleted: the heads of now stay under tags, and undo brings their rows back.",
    ),
    el("li", {}, "The source is not changed. After accept the tables differ from it until a resync."),
    without.length > 0 &&
      el(
        "li",
        {},
        `No replay for ${without.join(", ")}: no history reaches back to the target, so what was between can only be had by undo or a resync.`,
      ),
  );
}
