// Maintenance: what it has done, what it would do now, and a pass that somebody asks for, which `pass.js` follows.

import { get, list, operates, post } from "./api.js";
import { button, el, link, right, rightHead, table, tableLink } from "./dom.js";
import { attempt, choice, empty, field, form, loading, order, trouble } from "./forms.js";
import { byReason, sum } from "./pass.js";
import { bytes, code, count, dash, duration, many, time } from "./words.js";

// Steps of the history that are shown.
const SHOWN = 100;

export async function maintenanceView(main, _, signal, asked) {
  const [wanted, plan, steps] = [el("div", {}, loading("Tables")), el("div"), el("div")];
  main.append(el("h1", {}, "Maintenance"), wanted, plan, el("h2", {}, "What was done"), steps);
  let chosen = asked.get("table") ?? "";

  // Reading the history is a scan, so it is read when somebody asks for it, and no longer than somebody waits for it.
  let reading = new AbortController();
  signal.addEventListener("abort", () => reading.abort());
  const read = () => {
    reading.abort();
    reading = new AbortController();
    return attempt(steps, [look], () => done(chosen, reading.signal));
  };
  const look = button("Look again", read, { id: "look" });
  const dryRun = el("button", { type: "submit", class: "main" }, "Dry run");
  const choose = name => {
    chosen = name;
    history.replaceState(null, "", link(["maintenance"], { table: chosen }));
    plan.replaceChildren();
    read();
  };
  try {
    const tables = (await list("tables", "tables", signal)).filter(one => one.kind !== "other").map(one => one.table);
    if (!tables.includes(chosen)) chosen = "";
    const control = choice("table", [["", "all tables"], ...tables.map(name => [name, name])], chosen, choose);
    wanted.replaceChildren(
      form(
        () => attempt(plan, [dryRun], () => planned(chosen, signal)),
        el("div", { class: "inline" }, field("Table", control), operates() && dryRun, look),
      ),
    );
    await read();
  } catch (error) {
    if (error.name !== "AbortError") wanted.replaceChildren(trouble(error));
  }
}

async function done(name, signal) {
  const only = name === "" ? "" : `&table=${encodeURIComponent(name)}`;
  const { runs } = await get(`maintenance/runs?limit=${SHOWN}${only}`, signal);
  if (runs.length === 0) return empty("Nothing yet.");
  const row = one => [
    time(one.started_at),
    el("a", { href: tableLink(one.table) }, one.table),
    one.operation,
    one.trigger,
    one.owner,
    /^[A-Z]/.test(one.result) ? code(one.result) : one.result,
    right(fromTo(one.input_files, one.output_files, count)),
    right(fromTo(one.input_bytes, one.output_bytes, bytes)),
    right(count(one.snapshots)),
    right(one.seconds === null ? "–" : duration(one.seconds)),
  ];
  const numbers = ["Files", "Bytes", "Snapshots that left", "Took"].map(rightHead);
  const head = ["Started", "Table", "Operation", "Why", "By", "Result", ...numbers];
  const told = runs.length === SHOWN && empty(`The newest ${SHOWN} steps.`);
  return el(
    "div",
    {},
    table("Steps of maintenance, newest first", head, runs.map(row), { class: "scrolls tall" }),
    told,
  );
}

const fromTo = (before, after, shown) =>
  before === null ? "–" : `${shown(before)} → ${after === null ? "–" : shown(after)}`;

// A plan is what a pass would do at this moment; a pass looks anew.
async function planned(name, signal) {
  const tables = name === "" ? undefined : [name];
  const { tables: reports } = await post("maintenance", { tables, dry_run: true }, { signal });
  const rows = reports.flatMap(report => stepsOf(report).map(step => line(report, step)));
  const numbers = ["Files", "Bytes", "Snapshots that leave"].map(rightHead);
  const head = ["Table", "Step", "Reason", ...numbers, "What comes of it"];
  const run = button("Run", () => begin(reports.map(report => report.table)), { id: "run", class: "main" });
  return el(
    "section",
    {},
    el("h2", {}, "What it would do now"),
    rows.length === 0
      ? empty(`Nothing: ${many(reports.length, "table")} looked at.`)
      : [table("Plan of maintenance", head, rows, { class: "scrolls tall" }), el("div", { class: "buttons" }, run)],
  );
}

const line = (report, { step, reason, files, size, snapshots, comes }) => [
  el("a", { href: tableLink(report.table) }, report.table),
  step,
  reason,
  right(count(files)),
  right(size === undefined ? "–" : bytes(size)),
  right(count(snapshots)),
  dash(comes),
];

function stepsOf({ plan, spark, code: why }) {
  const steps = [];
  if (why) steps.push({ step: "none", reason: code(why) });
  if (spark)
    steps.push({ step: "by Spark", reason: "its statements", comes: spark.statements.map(one => el("pre", {}, one)) });
  if (!plan) return steps;
  for (const [reason, rewrites] of byReason(plan.rewrites)) {
    steps.push({
      step: "compaction",
      reason,
      files: rewrites.reduce((all, one) => all + one.files.length + one.delete_files.length, 0),
      size: sum(rewrites, "bytes"),
      comes: `about ${many(sum(rewrites, "expected_files"), "file")}; ${many(sum(rewrites, "deleted_rows"), "deleted row")} dropped`,
    });
  }
  const { dangling_deletes, equality_deletes, merged_manifests, expiry, orphans } = plan;
  if (dangling_deletes.length > 0)
    steps.push({ step: "compaction", reason: "dangling-deletes", files: dangling_deletes.length });
  if (equality_deletes.length > 0)
    steps.push({ step: "compaction", reason: "equality-deletes", files: equality_deletes.length });
  if (merged_manifests > 0) steps.push({ step: "compaction", reason: "manifests", files: merged_manifests });
  const tagged = Object.keys(expiry.tagged);
  if (expiry.expired.length + expiry.untagged.length + tagged.length > 0)
    steps.push({
      step: "expiry",
      reason: "retention",
      snapshots: expiry.expired.length,
      comes: expires(expiry, tagged),
    });
  if (orphans.removable.length > 0)
    steps.push({
      step: "cleaning",
      reason: "files that nothing needs",
      files: orphans.removable.length,
      size: sum(orphans.removable, "bytes"),
    });
  if (orphans.refused) steps.push({ step: "cleaning", reason: "refused", comes: orphans.refused });
  return steps;
}

// Which snapshots leave, to be opened: there may be thousands.
const expires = ({ expired, untagged }, tagged) => [
  expired.length > 0 &&
    el(
      "details",
      {},
      el("summary", {}, many(expired.length, "snapshot")),
      expired.map(id => [el("code", {}, id), " "]),
    ),
  tagged.length > 0 && el("div", {}, `tags that come: ${tagged.join(", ")}`),
  untagged.length > 0 && el("div", {}, `tags that go: ${untagged.join(", ")}`),
];

const begin = tables =>
  order({
    title: "Run maintenance",
    text: "A pass looks at the tables anew and does what it finds to do by then. Snapshots that leave cannot be read any more; rows of now stay as they are.",
    words: () => [["Tables", tables.join(", ")]],
    verb: "Run",
    give: body => post("maintenance", { ...body, tables, dry_run: false }),
    done: ({ id }) => (location.hash = link(["maintenance", id])),
  });
