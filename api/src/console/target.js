// Where a rollback goes back to, and which tables: the form of its first step and what it comes to.

import { Problem, list, tableAt } from "./api.js";
import { el } from "./dom.js";
import { choice, empty, field, loading, trouble } from "./forms.js";
import { many, plain } from "./words.js";

const KINDS = [
  ["snapshot_id", "a snapshot of one table"],
  ["tag", "a tag of one table"],
  ["cut", "a cut of several tables"],
  ["as_of", "a time of several tables"],
];
const WORDS = { snapshot_id: "snapshot", tag: "tag", cut: "cut", as_of: "time" };

export class Target {
  // Of a pipeline with these mirrors, whose newest cut may be known; `asked` may name a table and its snapshot.
  constructor(pipeline, mirrors, cut, asked, signal) {
    Object.assign(this, { pipeline, mirrors, cut, signal });
    const table = asked.get("table");
    this.kind = table ? "snapshot_id" : "cut";
    this.table = mirrors.includes(table) ? table : mirrors[0];
    this.tables = new Set(mirrors);
    this.points = { snapshot_id: asked.get("snapshot") ?? "", tag: "", cut: "", as_of: "" };
    // Of the table that is chosen; null until they are there.
    this.snapshots = null;
  }

  get isOfOne() {
    return this.kind === "snapshot_id" || this.kind === "tag";
  }

  // As POST /v1/rollbacks takes it. Tables are named also where they are all: what stands in the form is what is meant, and
  // no table that is not seen here.
  wanted() {
    const point = this.points[this.kind].trim();
    if (point === "") throw new Problem(400, { detail: "Say where to go back to." });
    const tables = this.isOfOne ? [this.table] : [...this.tables];
    if (tables.length === 0) throw new Problem(400, { detail: "Choose at least one table." });
    return { pipeline: this.pipeline, tables, [this.kind]: point };
  }

  inWords() {
    const which = this.isOfOne ? this.table : many(this.tables.size, "table");
    return `${which} to ${WORDS[this.kind]} ${this.points[this.kind]}`;
  }

  // Fields; they are drawn anew where one decides which others there are.
  draw() {
    const place = el("div");
    const redraw = name => {
      place.replaceChildren(field("Back to", kind()), ...(this.isOfOne ? this.ofOne(redraw) : this.ofSeveral()));
      if (name) place.querySelector(`[name=${name}]`).focus();
    };
    const kind = () =>
      choice("kind", KINDS, this.kind, chosen => {
        this.kind = chosen;
        redraw("kind");
      });
    redraw(null);
    return place;
  }

  ofOne(redraw) {
    const tables = this.mirrors.map(name => [name, name]);
    const which = choice("table", tables, this.table, chosen => {
      this.table = chosen;
      Object.assign(this.points, { snapshot_id: "", tag: "" });
      this.snapshots = null;
      redraw("table");
    });
    const point = el("div", {}, loading("Snapshots"));
    this.drawPoints(point);
    return [field("Table", which), point];
  }

  async drawPoints(place) {
    const { kind, points } = this;
    try {
      if (this.snapshots === null) this.snapshots = await newestFirst(this.table, this.signal);
    } catch (error) {
      if (error.name !== "AbortError") place.replaceChildren(trouble(error));
      return;
    }
    // The first one is the head, which is no way back.
    const options =
      kind === "snapshot_id"
        ? this.snapshots.slice(1).map(one => [one.snapshot_id, plain(one)])
        : this.snapshots.flatMap(one => one.tags.map(tag => [tag, `${tag}, ${plain(one)}`]));
    if (options.length === 0) {
      const none = kind === "tag" ? "The table has no tags." : "The table has no older snapshot.";
      place.replaceChildren(empty(none));
      return;
    }
    const isThere = options.some(([value]) => value === points[kind]);
    const gone =
      !isThere && points[kind] !== "" && empty(`${points[kind]} is no older snapshot that is kept; choose one.`);
    if (!isThere) points[kind] = options[0][0];
    const control = choice(kind, options, points[kind], chosen => (points[kind] = chosen));
    place.replaceChildren(gone || "", field(kind === "tag" ? "Tag" : "Snapshot", control));
  }

  ofSeveral() {
    const { kind, points, tables, mirrors, cut } = this;
    const typed = event => (points[kind] = event.target.value);
    const input = el("input", { type: "text", autocomplete: "off", spellcheck: "false", name: kind, input: typed });
    input.value = points[kind];
    const newest = cut ? `; the newest cut is ${cut.position}` : "";
    const help =
      kind === "cut"
        ? `A position, as snapshots show it under to${newest}.`
        : "Date and time with its zone, such as 2026-11-21T09:30:00Z.";
    const box = name => {
      const change = ({ target }) => (target.checked ? tables.add(name) : tables.delete(name));
      const control = el("input", { type: "checkbox", value: name, checked: tables.has(name), change });
      return el("label", { class: "box" }, control, " ", name);
    };
    const legend = el("legend", {}, `Tables, ${mirrors.length} in all`);
    return [field(kind === "cut" ? "Cut" : "Time", input, help), el("fieldset", {}, legend, mirrors.map(box))];
  }
}

async function newestFirst(table, signal) {
  return (await list(`${tableAt(table)}/snapshots`, "snapshots", signal)).reverse();
}
