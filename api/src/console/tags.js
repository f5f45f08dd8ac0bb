// Names of a snapshot: given, moved by who has seen where they stand, and taken away. A name that the product has made itself,
// such as that of a rollback's undo, nobody else takes.

import { Problem, call, me, tableAt } from "./api.js";
import { button, el } from "./dom.js";
import { field, order } from "./forms.js";

const PROTECTED = "protected/";
const OWN = ["undo/", "target/", "hourly/", "daily/"];

const isProtected = name => name.startsWith(PROTECTED);
const tagAt = (table, name) => `${tableAt(table)}/tags/${encodeURIComponent(name)}`;

// What an operator may do with the names of the snapshot that is picked.
export function tagVerbs(table, snapshot, snapshots, done) {
  const removable = name => !OWN.some(prefix => name.startsWith(prefix)) && (me.role === "admin" || !isProtected(name));
  return [
    button("Tag", () => tag(table, snapshot, snapshots, done), { id: "tag" }),
    button("Protect", () => protect(table, snapshot, done), { id: "protect" }),
    snapshot.tags
      .filter(removable)
      .map(name => button(`Untag ${name}`, () => untag(table, snapshot, name, done), { id: `untag-${name}` })),
  ];
}

function nameField() {
  const control = el("input", {
    type: "text",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    name: "tag",
  });
  const read = () => {
    const name = control.value.trim();
    if (name === "") throw new Error("Give it a name.");
    return name;
  };
  return [control, read];
}

function tag(table, { snapshot_id }, snapshots, done) {
  const [control, read] = nameField();
  const standsAt = name => snapshots.find(one => one.tags.includes(name))?.snapshot_id;
  order({
    title: "Tag the snapshot",
    text: "It can be read by the name, and does not expire while it has it. A name that another snapshot has moves here.",
    more: [field("Name", control, "Letters, digits, . _ and -, with slashes between them.")],
    read: () => ({ name: read() }),
    words: ({ name }) => [
      ["Table", table],
      ["Tag", name],
      ["Snapshot", snapshot_id],
      ["Moves from", standsAt(name)],
    ],
    verb: "Tag",
    give: ({ name, reason }) => set(table, name, snapshot_id, standsAt(name), reason),
    done,
  });
}

function protect(table, { snapshot_id }, done) {
  const [control, read] = nameField();
  order({
    title: "Protect the snapshot",
    text: "It is kept for ever under a name that never moves, and that only an admin takes away.",
    more: [field("Name", control, `It gets ${PROTECTED} before it.`)],
    read: () => ({ name: `${PROTECTED}${read().replace(/^protected\//, "")}` }),
    words: ({ name }) => [
      ["Table", table],
      ["Tag", name],
      ["Snapshot", snapshot_id],
    ],
    verb: "Protect",
    give: ({ name, reason }) => set(table, name, snapshot_id, undefined, reason),
    done,
  });
}

function untag(table, { snapshot_id }, name, done) {
  order({
    title: "Take the tag away",
    text: "The snapshot loses the name, and expires once nothing else keeps it.",
    words: () => [
      ["Table", table],
      ["Tag", name],
      ["Snapshot", snapshot_id],
    ],
    verb: "Untag",
    give: async ({ reason }) => {
      const etag = await seen(table, name, snapshot_id);
      return call("DELETE", tagAt(table, name), { body: { reason }, headers: { "if-match": etag } });
    },
    done,
  });
}

// A name that stood nowhere when it was looked at must not stand anywhere now, and one that stood somewhere still there.
async function set(table, name, snapshot_id, from, reason) {
  const headers = from === undefined ? { "if-none-match": "*" } : { "if-match": await seen(table, name, from) };
  return call("PUT", tagAt(table, name), { body: { snapshot_id, reason }, headers });
}

// The name's `ETag`, where it stands at the snapshot at which the viewer has seen it.
async function seen(table, name, snapshot_id) {
  const response = await call("GET", tagAt(table, name));
  const found = await response.json();
  if (found.snapshot_id !== snapshot_id) {
    const detail = `${name} stands at ${found.snapshot_id} by now; nothing was changed`;
    throw new Problem(412, { code: "TAG_MOVED", detail });
  }
  return response.headers.get("etag");
}
