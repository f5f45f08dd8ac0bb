// One table: its past as a list of snapshots, and what stands in the one that is picked.

import { get, list, me, operates, tableAt } from "./api.js";
import { button, el, facts, link, redraw, right, rightHead, table, tell } from "./dom.js";
import { empty, loading, trouble } from "./forms.js";
import { changesPlot, lagPlot } from "./plot.js";
import { quarantineLink } from "./quarantine.js";
import { pick } from "./snapshot.js";
import { resync } from "./verbs.js";
import { ownerOf, watch, watched } from "./watch.js";
import { ago, bytes, changes, code, count, dash, duration, state, time } from "./words.js";

// Snapshots that are listed at first, and with each further wish.
const SHOWN = 100;

export async function tableView(main, [namespace, name], signal, asked) {
  const full = `${namespace}.${name}`;
  const at = tableAt(full);
  const [head, plots, past, picked, refs, more] = ["div", "div", "div", "section", "div", "div"].map(kind => el(kind));
  main.append(
    el("h1", {}, full),
    head,
    plots,
    el("h2", {}, "Snapshots"),
    past,
    picked,
    el("h2", {}, "References"),
    refs,
    more,
  );
  head.append(loading("Table"));
  past.append(loading("Snapshots"));
  let described = null;
  let snapshots = null;
  let shown = SHOWN;
  let chosen = asked.get("snapshot");

  const stands = () => ownerOf(full);
  const isMirror = () => described?.kind === "mirror";
  const canRollBack = () => operates() && isMirror() && stands() !== null;
  const canTag = () => operates() && described.kind !== "other";

  const drawHead = () => {
    if (described === null) return;
    const { pipeline, table: own } = stands() ?? {};
    redraw(
      head,
      facts([
        ["Kind", described.kind],
        ["Source", described.source && [described.source, pipeline && ` by ${pipeline.name}`]],
        ["State", own && [state(own.state), " ", code(own.code)]],
        [
          "Committed",
          described.committed_at ? [time(described.committed_at), ", ", ago(described.committed_at)] : "nothing yet",
        ],
        ["Rows", count(own?.rows ?? described.rows)],
        [
          "In quarantine",
          own?.quarantined > 0 && el("a", { id: "quarantine", href: quarantineLink(full) }, count(own.quarantined)),
        ],
        ["Position", own?.position ?? described.position],
        ["Key", described.key.join(", ") || "none"],
      ]),
      canRollBack() &&
        el(
          "div",
          { class: "buttons" },
          el(
            "a",
            { class: "button", id: "roll-back", href: link(["rollback", pipeline.name], { table: full }) },
            "Roll back",
          ),
          button("Resync", () => resync(pipeline.name, [full]), { id: "resync" }),
        ),
    );
  };

  const drawPlots = () => {
    const { pipeline } = stands() ?? {};
    redraw(
      plots,
      el(
        "div",
        { class: "cards" },
        snapshots !== null && changesPlot(snapshots),
        pipeline &&
          lagPlot(pipeline.lag_seconds === null ? "Age of the cut" : "Lag", watched.rings.get(pipeline.name) ?? []),
      ),
    );
  };

  const choose = id => {
    chosen = id;
    // The address says what is picked, and the way back is not filled with it.
    history.replaceState(null, "", link(["tables", namespace, name], { snapshot: id }));
    drawPast();
    pick(picked, {
      full,
      snapshots,
      id,
      signal,
      rollBack: canRollBack() ? stands().pipeline.name : null,
      tagged: canTag() ? tagged : null,
    });
    picked.querySelector("h2")?.focus({ preventScroll: true });
    picked.scrollIntoView({ block: "start" });
  };

  const drawPast = () => {
    if (snapshots.length === 0) return redraw(past, empty("No snapshots yet."));
    const newest = [...snapshots].reverse();
    const row = one =>
      el(
        "tr",
        { "aria-current": one.snapshot_id === chosen && "true", class: one.snapshot_id === chosen ? "chosen" : "" },
        el("td", {}, time(one.committed_at)),
        el("td", {}, one.kind),
        right(changes(one)),
        el(
          "td",
          {},
          one.tags.map(tag => el("span", { class: "tag" }, tag)),
        ),
        el("td", {}, el("code", {}, one.from || one.to ? `${dash(one.from)} → ${dash(one.to)}` : "–")),
        el(
          "td",
          {},
          button(one.snapshot_id, () => choose(one.snapshot_id), {
            class: "small",
            id: `pick-${one.snapshot_id}`,
            "aria-label": `Pick snapshot ${one.snapshot_id}`,
          }),
        ),
      );
    const head = ["Committed", "Kind", rightHead("Changes"), "Tags", "From → to", "Snapshot"];
    redraw(
      past,
      table("Snapshots, newest first", head, newest.slice(0, shown).map(row), { class: "scrolls tall" }),
      newest.length > shown &&
        button(
          `Show ${Math.min(SHOWN, newest.length - shown)} older of ${count(newest.length)}`,
          () => {
            shown += SHOWN;
            drawPast();
          },
          { id: "older" },
        ),
    );
  };

  // What is told where the table was shown already.
  const load = async news => {
    try {
      const [now, then, named] = await Promise.all([
        get(at, signal),
        ...["snapshots", "refs"].map(part => list(`${at}/${part}`, part, signal)),
      ]);
      const isNew = described === null;
      [described, snapshots] = [now, then];
      drawHead();
      drawPlots();
      drawPast();
      redraw(refs, references(named));
      if (isNew) {
        about(more, at, described, signal);
        if (snapshots.some(one => one.snapshot_id === chosen)) choose(chosen);
        else if (chosen) picked.append(empty(`Snapshot ${chosen} is not kept any more.`));
      } else {
        tell(news);
      }
    } catch (error) {
      if (error.name !== "AbortError") redraw(described === null ? head : more, trouble(error));
      if (described === null) past.replaceChildren();
    }
  };
  const tagged = async () => {
    await load("The tags are as you wanted them.");
    if (!signal.aborted && snapshots.some(one => one.snapshot_id === chosen)) choose(chosen);
  };
  await load();
  watch(signal, () => {
    drawHead();
    drawPlots();
    const own = stands()?.table;
    if (me !== null && described !== null && own && own.snapshot_id !== described.snapshot_id)
      load("There is a newer snapshot.");
  });
}

const references = refs =>
  refs.length === 0
    ? empty("None.")
    : table(
        "References",
        ["Name", "Kind", "Snapshot"],
        refs.map(one => [el("span", { class: "tag" }, one.name), one.kind, el("code", {}, one.snapshot_id)]),
      );

// What changes seldom: columns, and how well the table can be read.
async function about(place, at, { table: name, columns, kind }, signal) {
  const row = one => [one.name, el("code", {}, one.type), one.required ? "required" : "", one.doc ?? ""];
  const health = el("div", {}, loading("Health"));
  const isMeasured = kind === "mirror" || kind === "history";
  place.append(
    ...(isMeasured ? [el("h2", {}, "Health"), health, upkeep(name)] : []),
    el("h2", {}, "Columns"),
    table("Columns", ["Name", "Type", "", "At the source"], columns.map(row)),
  );
  if (!isMeasured) return;
  try {
    health.replaceChildren(measures(await get(`${at}/health`, signal)));
  } catch (error) {
    if (error.name !== "AbortError") health.replaceChildren(trouble(error));
  }
}

const upkeep = name =>
  el("p", {}, el("a", { href: link(["maintenance"], { table: name }) }, "Maintenance of this table"));

function measures(found) {
  const { compact, expire, clean } = found.owner;
  const owners =
    compact === expire && expire === clean ? compact : `compact ${compact}, expire ${expire}, clean ${clean}`;
  const measured = found.score !== undefined;
  return facts([
    ["Code", code(found.code)],
    ["Score", measured && `${found.score.toFixed(0)} of 100`],
    ["Upkeep by", owners],
    ["Data files", measured && `${count(found.data_files)}, ${bytes(found.bytes)}; ${count(found.small_files)} small`],
    ["Delete files", measured && `${count(found.delete_files)}, ${count(found.deleted_rows)} rows`],
    [
      "Deletes",
      measured && `at most ${count(found.most_deletes_per_file)} of a file, ${count(found.dangling_deletes)} dangling`,
    ],
    ["Manifests", measured && `${count(found.manifests)}, ${bytes(found.manifest_bytes)}`],
    ["Snapshots", measured && `${count(found.snapshots)}, ${bytes(found.metadata_bytes)} of metadata`],
    ["Debt", measured && bytes(found.debt_bytes)],
    [
      "Compacted",
      measured && (found.compaction_age_seconds === null ? "not yet" : `${duration(found.compaction_age_seconds)} ago`),
    ],
    [
      "Time travel",
      measured &&
        `${duration(found.time_travel_seconds)} of ${duration(found.promised_time_travel_seconds)}${found.time_travel_kept ? "" : ", short"}`,
    ],
  ]);
}
