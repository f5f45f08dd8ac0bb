// Rows of a table that could not be mapped, and their replay once they can be.

import { call, get, operates, tableAt } from "./api.js";
import { button, el, table, tableLink } from "./dom.js";
import { empty, loading, order } from "./forms.js";
import { pageOf, readPages } from "./pages.js";
import { code, dash, many, time } from "./words.js";

export const quarantineLink = name => `${tableLink(name)}/quarantine`;

export async function quarantineView(main, [namespace, name], signal) {
  const full = `${namespace}.${name}`;
  const at = `${tableAt(full)}/quarantine`;
  const [rows, asked] = [el("div", {}, loading("Quarantine")), el("div")];
  main.append(el("h1", {}, "Quarantine of ", el("a", { href: tableLink(full) }, full)), asked, rows);
  const done = () =>
    asked.replaceChildren(
      el("p", { class: "note" }, "Asked for: the pipeline does it, at once if it runs, else when it starts."),
    );
  const read = async token => {
    try {
      return await get(pageOf(at, token), signal);
    } catch (error) {
      // A service of before this list.
      if (error.code === "ROUTE_UNKNOWN") return { quarantined: [] };
      throw error;
    }
  };
  await readPages(rows, "quarantined", read, (found, answer) => shown(full, found, answer, done));
}

function shown(full, found, { quarantine, rows }, done) {
  if (found.length === 0) return empty("Nothing is in quarantine.");
  const row = one => [
    time(one.committed_at),
    one.operation,
    el("code", { class: "value" }, one.key),
    el("span", { class: "value" }, one.column),
    code(one.code),
    el("span", { class: "value" }, one.reason),
    el("code", {}, dash(one.position)),
    dash(one.lane),
    dash(one.offset),
  ];
  const head = ["When", "Operation", "Key", "Column", "Code", "Reason", "Position", "Lane", "Offset"];
  return el(
    "div",
    {},
    el("p", {}, `${many(rows, "row")} in ${quarantine}, the newest first. A key is shown as its digest.`),
    operates() &&
      el(
        "div",
        { class: "buttons" },
        button("Replay", () => replay(full, done), { id: "replay" }),
      ),
    table("Rows in quarantine", head, found.map(row), { class: "scrolls tall" }),
  );
}

const replay = (full, done) =>
  order({
    title: `Replay the quarantine of ${full}`,
    text: "Rows that can be mapped by now, and whose keys have not been written since, go into the table and its history. All of them stay in the quarantine.",
    words: () => [["Table", full]],
    verb: "Replay",
    give: body => call("POST", `${tableAt(full)}/quarantine:replay`, { body }),
    done,
  });
