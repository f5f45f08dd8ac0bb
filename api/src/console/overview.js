// Pipelines and tables as they stand.

import { get, list, operates, tableAt } from "./api.js";
import { button, el, facts, link, redraw, right, rightHead, table, tableLink } from "./dom.js";
import { empty, loading, trouble } from "./forms.js";
import { lagPlot } from "./plot.js";
import { quarantineLink } from "./quarantine.js";
import { pause, resume, resync, verify } from "./verbs.js";
import { ownerOf, watch, watched } from "./watch.js";
import { ago, code, count, dash, duration, many, state, time } from "./words.js";

// Looks at the pipelines after which tables are asked for again, at least where one has a newer snapshot, and at most.
const [SOON, LATE] = [2, 6];

export async function overview(main, _, signal) {
  const [pipelines, tables] = [el("div", { class: "cards" }), el("div")];
  const wanted = el("input", {
    type: "search",
    "aria-label": "Only tables whose name has this",
    placeholder: "part of a name",
    input: () => draw(),
  });
  main.append(
    el("h1", {}, "Overview"),
    el("h2", {}, "Pipelines"),
    pipelines,
    el("div", { class: "beside" }, el("h2", {}, "Tables"), wanted),
    tables,
  );
  pipelines.append(loading("Pipelines"));
  tables.append(loading("Tables"));
  const health = new Health(tables, signal);
  let known = null;
  let looks = 0;

  const draw = () => {
    if (known !== null) redraw(tables, listed(known, wanted.value.trim(), health));
    health.see();
  };
  const isOld = () =>
    known?.some(one => (ownerOf(one.table)?.table.snapshot_id ?? one.snapshot_id) !== one.snapshot_id);
  const load = async () => {
    looks = 0;
    try {
      known = await list("tables", "tables", signal);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") redraw(tables, trouble(error));
    }
  };
  watch(signal, () => {
    redraw(
      pipelines,
      watched.problem && trouble(watched.problem),
      (watched.pipelines ?? []).map(card),
      watched.pipelines?.length === 0 && empty("This service has no pipelines."),
    );
    looks += 1;
    if (looks >= LATE || (looks >= SOON && isOld())) load();
    else draw();
  });
  await load();
}

function card(pipeline) {
  const { name, source, paused, cut, tables } = pipeline;
  const names = tables.map(one => one.table);
  return el(
    "article",
    { class: "card" },
    el("div", { class: "beside" }, el("h3", {}, name), state(pipeline.state), code(pipeline.code)),
    facts([
      ["Paused because", paused],
      ["Source", source],
      [
        "Cut",
        cut ? [el("code", {}, cut.position), " of ", time(cut.committed_at), ", ", ago(cut.committed_at)] : "none yet",
      ],
      ["Lag", pipeline.lag_seconds === null ? null : duration(pipeline.lag_seconds)],
      ["Tables", many(tables.length, "table")],
    ]),
    lagPlot(pipeline.lag_seconds === null ? "Age of the cut" : "Lag", watched.rings.get(name) ?? []),
    operates() &&
      el(
        "div",
        { class: "buttons" },
        pipeline.state === "paused"
          ? button("Resume", () => resume(name), { id: `resume-${name}` })
          : button("Pause", () => pause(name), { id: `pause-${name}` }),
        names.length > 0 &&
          el("a", { class: "button", id: `rollback-${name}`, href: link(["rollback", name]) }, "Roll back"),
        names.length > 0 && button("Resync", () => resync(name, names), { id: `resync-${name}` }),
        names.length > 0 && button("Verify", () => verify(name, names), { id: `verify-${name}` }),
      ),
  );
}

function listed(tables, part, health) {
  const shown = tables.filter(one => one.table.includes(part));
  if (tables.length === 0) return empty("No tables, or none that this token may see.");
  if (shown.length === 0) return empty(`No name has "${part}" in it.`);
  const row = one => {
    const stands = ownerOf(one.table)?.table;
    return el(
      "tr",
      { "data-table": one.table },
      el("td", {}, el("a", { href: tableLink(one.table), id: `table-${one.table}` }, one.table)),
      el(
        "td",
        {},
        stands ? state(stands.state) : "–",
        stands?.diverged_since && [" not as its source since ", el("code", {}, stands.diverged_since)],
        stands?.quarantined > 0 && [
          " ",
          el(
            "a",
            { href: quarantineLink(one.table), id: `quarantine-${one.table}` },
            `${count(stands.quarantined)} in quarantine`,
          ),
        ],
      ),
      el("td", {}, dash(code(stands?.code))),
      right(ago(one.committed_at)),
      right(count(stands?.rows ?? one.rows)),
      el("td", {}, one.kind),
      right(health.of(one)),
    );
  };
  return table(
    "Tables",
    ["Table", "State", "Code", rightHead("Committed"), rightHead("Rows"), "Kind", rightHead("Health")],
    shown.map(row),
  );
}

// Scores of tables that have come into view, one call at a time: each reads the table's manifests.
class Health {
  constructor(place, signal) {
    this.place = place;
    this.signal = signal;
    this.known = new Map();
    this.wanted = [];
    this.isBusy = false;
    this.seen = new IntersectionObserver(entries =>
      entries.filter(entry => entry.isIntersecting).forEach(entry => this.want(entry.target)),
    );
    signal.addEventListener("abort", () => this.seen.disconnect());
  }

  of({ table, kind }) {
    if (kind !== "mirror" && kind !== "history") return "–";
    return this.known.get(table) ?? "…";
  }

  see() {
    this.seen.disconnect();
    this.place.querySelectorAll("tr[data-table]").forEach(row => this.seen.observe(row));
  }

  want({ dataset: { table }, lastElementChild }) {
    if (lastElementChild.textContent === "…" && !this.wanted.includes(table)) this.wanted.push(table);
    this.next();
  }

  async next() {
    if (this.isBusy || this.wanted.length === 0) return;
    this.isBusy = true;
    const name = this.wanted.shift();
    try {
      const { score, code: why } = await get(`${tableAt(name)}/health`, this.signal);
      this.known.set(name, score === undefined || score === null ? dash(why) : score.toFixed(0));
    } catch (error) {
      if (error.name === "AbortError") return;
      this.known.set(name, error.code || "–");
    }
    this.isBusy = false;
    const row = this.place.querySelector(`tr[data-table="${CSS.escape(name)}"]`);
    row?.lastElementChild.replaceChildren(this.known.get(name));
    this.next();
  }
}
