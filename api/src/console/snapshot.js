// One snapshot of a table: its rows, the same rows by Athena, and what differs between it and another one.

import { call, get, lines, tableAt } from "./api.js";
import { cell, members } from "./cells.js";
import { button, el, facts, link, rightHead, table } from "./dom.js";
import { attempt, choice, empty, field, form, loading, trouble } from "./forms.js";
import { tagVerbs } from "./tags.js";
import { changes, plain, time } from "./words.js";

// Rows, or changes, that are shown.
const SHOWN = 100;
const LINES = "application/x-ndjson";
const CHANGES = { insert: "+ inserted", delete: "- deleted", update_before: "~ before", update_after: "~ after" };

// `rollBack` is the pipeline that can roll back to it, and `tagged` is called behind a change of its tags; null where the role
// or the table allows none.
export function pick(place, { full, snapshots, id, signal, rollBack, tagged }) {
  const one = snapshots.find(known => known.snapshot_id === id);
  const [rows, differs] = [el("div"), el("div")];
  const others = snapshots.filter(known => known.snapshot_id !== id).reverse();
  const to = choice("to", [["main", "the newest"], ...others.map(other => [other.snapshot_id, plain(other)])], "main");
  const compare = el("button", { type: "submit" }, "Compare");
  place.replaceChildren(
    el("h2", { tabindex: "-1" }, "Snapshot ", el("code", {}, id)),
    facts([
      ["Committed", time(one.committed_at)],
      ["Kind", one.kind],
      ["Changes", changes(one)],
      ["Up to", one.to && el("code", {}, one.to)],
      ["Tags", one.tags.length > 0 && one.tags.map(tag => el("span", { class: "tag" }, tag))],
    ]),
    el(
      "div",
      { class: "buttons" },
      rollBack &&
        el(
          "a",
          { class: "button", href: link(["rollback", rollBack], { table: full, snapshot: id }) },
          "Roll back to this",
        ),
      tagged && tagVerbs(full, one, snapshots, tagged),
    ),
    el("h3", {}, "Rows"),
    rows,
    el("h3", {}, "Differences"),
    form(
      () => attempt(differs, [compare], () => difference(full, id, to.value, signal)),
      el("div", { class: "inline" }, field("From this to", to), compare),
    ),
    differs,
  );
  readRows(rows, full, id, signal);
}

async function readRows(place, full, id, signal) {
  place.replaceChildren(loading("Rows"));
  try {
    const response = await call("GET", `${tableAt(full)}/rows?snapshot_id=${id}&limit=${SHOWN}`, {
      accept: LINES,
      signal,
    });
    const sql = response.headers.get("athena-sql");
    const { found, failed } = await read(response);
    place.replaceChildren(
      sql ? athena(sql) : "",
      found.length === 0 ? empty("No rows.") : grid(`Rows of ${full}`, found),
      found.length === SHOWN ? empty(`The first ${SHOWN} rows that were read, in no order.`) : "",
      failed ?? "",
    );
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(trouble(error));
  }
}

// The counts first: they are small, whatever has changed. They stay where the changes fail.
async function difference(full, from, to, signal) {
  const target = `${tableAt(full)}/diff?from=${encodeURIComponent(from)}&to=${encodeURIComponent(to)}`;
  const counted = await get(`${target}&counts=true`, signal);
  const list = el("div", {}, loading("Changes"));
  if (counted.inserted + counted.updated + counted.deleted === 0) list.replaceChildren(empty("Nothing differs."));
  else readChanges(list, full, target, signal);
  return el("div", {}, el("p", {}, changes(counted), " rows inserted, updated and deleted"), list);
}

async function readChanges(place, full, target, signal) {
  try {
    const { found, failed } = await read(await call("GET", target, { accept: LINES, signal }));
    const isCut = found.length === SHOWN;
    place.replaceChildren(
      grid(`Changes of ${full}`, found),
      isCut ? empty(`The first ${SHOWN} lines of them.`) : "",
      failed ?? "",
    );
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(trouble(error));
  }
}

// Members of each row, and what the last line says where it says that the answer was cut off.
async function read(response) {
  const read = [];
  for await (const line of lines(response, SHOWN)) read.push(line);
  // The one behind the last row says how it has ended.
  const ended = read.length < SHOWN && read.length > 0 ? JSON.parse(read.pop()) : null;
  const isWhole = ended === null ? read.length === SHOWN : ended._status === "complete";
  const found = read.map(members);
  const failed = isWhole
    ? null
    : el(
        "p",
        { class: "trouble", role: "alert" },
        `The answer was cut off${ended?.code ? `: ${ended.code}` : ""}. There are more rows than these.`,
      );
  return { found, failed };
}

function grid(label, found) {
  const names = [...new Set(found.flatMap(row => row.map(([name]) => name)))];
  const row = pairs => {
    const values = new Map(pairs);
    const change = names[0] === "_change" ? JSON.parse(values.get("_change")) : null;
    return el(
      "tr",
      { class: change ?? "" },
      names.map(name =>
        name === "_change" && change !== null
          ? el("td", { class: "change" }, CHANGES[change] ?? change)
          : cell(values.get(name)),
      ),
    );
  };
  const isNumber = place => /^-?\d/.test(found.find(row => row[place]?.[1] !== "null")?.[place]?.[1] ?? "");
  const heads = names.map((name, place) =>
    place === 0 && name === "_change" ? "Change" : isNumber(place) ? rightHead(name) : name,
  );
  return table(label, heads, found.map(row), { class: "scrolls tall rows" });
}

function athena(sql) {
  const copy = button(
    "Copy",
    async () => {
      try {
        await navigator.clipboard.writeText(sql);
        tell("Copied");
        copy.textContent = "Copied";
      } catch {
        // Without the right to the clipboard the text is marked, and the viewer copies it.
        document.getSelection().selectAllChildren(text);
      }
    },
    { class: "small" },
  );
  const text = el("code", {}, sql);
  return el("p", { class: "athena" }, el("span", {}, "Athena "), text, " ", copy);
}
