// Rollbacks that were begun: all of them, and one with its stage and its ways out.

import { get, list, operates } from "./api.js";
import { button, el, facts, link, redraw, table, tableLink, tell } from "./dom.js";
import { empty, loading, trouble } from "./forms.js";
import { abort, accept, replay, resync, undo } from "./verbs.js";
import { look, watch } from "./watch.js";
import { code, state, time } from "./words.js";

const FORWARD = ["forward", "rolled_back", "closed"];
const BACK = ["back", "released"];
// Between two looks at an operation that is under way, in milliseconds.
const POLL = 1_000;
const STAGES = {
  forward: "The tables go to their targets, one after the other.",
  rolled_back: "Every table stands at its target.",
  back: "The tables go back to the rows that they had.",
  released: "Every table has the rows that it had before.",
  closed: "No table is held any more, and the tags of the operation are gone.",
};

export async function operationsView(main, _, signal) {
  const place = el("div", {}, loading("Operations"));
  main.append(el("h1", {}, "Operations"), place);
  const load = async () => {
    try {
      const operations = await list("operations", "operations", signal);
      operations.sort((one, other) => other.begun_at.localeCompare(one.begun_at));
      const row = one => [
        time(one.begun_at),
        state(one.stage),
        one.by,
        one.reason,
        one.pipeline,
        Object.keys(one.tables).join(", "),
        el("a", { href: link(["operations", one.id]), id: `operation-${one.id}` }, "Look at it"),
      ];
      const head = ["Begun", "Stage", "By", "Reason", "Pipeline", "Tables", ""];
      redraw(
        place,
        operations.length === 0
          ? empty("No rollbacks, or none whose tables this token may see.")
          : table("Operations", head, operations.map(row)),
      );
    } catch (error) {
      if (error.name !== "AbortError") redraw(place, trouble(error));
    }
  };
  await load();
  watch(signal, load);
}

export async function operationView(main, [id], signal) {
  const place = el("div", {}, loading("Operation"));
  main.append(el("h1", {}, "Operation"), place);
  let stage = null;
  let timer = null;
  // The way out that was asked for from here.
  let asked = null;
  signal.addEventListener("abort", () => clearTimeout(timer));

  const load = async () => {
    clearTimeout(timer);
    try {
      const operation = await get(`operations/${encodeURIComponent(id)}`, signal);
      // Read behind it: how its tables stand now, and not at the last look.
      const [{ tables }, operations] = await Promise.all([
        get(`pipelines/${encodeURIComponent(operation.pipeline)}`, signal),
        list("operations", "operations", signal),
      ]);
      if (stage !== null && stage !== operation.stage) tell(`The operation's stage is ${operation.stage}`);
      stage = operation.stage;
      redraw(place, show(operation, tables, operations, asked, chosen));
      if (stage === "forward" || stage === "back") timer = setTimeout(load, POLL);
    } catch (error) {
      if (error.name !== "AbortError") redraw(place, trouble(error));
    }
  };
  const chosen = way => () => {
    asked = way;
    look();
    return load();
  };
  await load();
  watch(signal, load);
}

function show(operation, tables, operations, asked, chosen) {
  const names = Object.keys(operation.tables);
  const stands = name => tables.find(one => one.table === name);
  // A table is held by the last operation that has touched it.
  const isLast = name => operations.filter(one => name in one.tables).every(one => one.begun_at <= operation.begun_at);
  const held = names.filter(
    name => operation.stage === "rolled_back" && stands(name)?.state === "paused_diverged" && isLast(name),
  );
  const row = name => {
    const { source, head, target, position, target_position } = operation.tables[name];
    const own = stands(name);
    return [
      el("a", { href: tableLink(name) }, name),
      source,
      own ? [state(own.state), " ", code(own.code)] : "–",
      el("code", {}, `${position} → ${target_position ?? "unknown"}`),
      el("code", {}, `${head} → ${target}`),
    ];
  };
  const head = ["Table", "Source", "State now", "Position → target's", "Head → target"];
  return [
    facts([
      ["Id", el("code", {}, operation.id)],
      ["Pipeline", operation.pipeline],
      ["By", operation.by],
      ["Begun", time(operation.begun_at)],
      ["Reason", operation.reason],
      ["Turned back because", operation.turned],
    ]),
    stages(operation),
    table("Tables of the operation", head, names.map(row)),
    operates() && exits(operation, held, asked, chosen),
  ];
}

function stages({ stage }) {
  const way = BACK.includes(stage) ? BACK : FORWARD;
  return el(
    "div",
    {},
    el(
      "ol",
      { class: "stages", "aria-label": "Stage" },
      way.map(one => el("li", { "aria-current": one === stage && "step" }, state(one))),
    ),
    el("p", {}, STAGES[stage]),
  );
}

function exits(operation, held, asked, chosen) {
  if (operation.stage === "forward")
    return el(
      "div",
      { class: "buttons" },
      button("Abort", () => abort(operation, chosen("abort")), { id: "abort" }),
    );
  if (held.length === 0) return operation.stage === "rolled_back" && empty("Its tables are held no longer.");
  return el(
    "section",
    {},
    el("h2", {}, "Ways out"),
    asked &&
      el("p", { class: "note" }, `Asked for: ${asked}. The pipeline does it, at once if it runs, else when it starts.`),
    el(
      "p",
      {},
      `Held: ${held.join(", ")}. Their mirrors take no changes until one of these is chosen; histories and all other tables go on.`,
    ),
    el(
      "ul",
      { class: "ways" },
      way("Undo", "The rows from before the rollback, and all changes since.", () => undo(operation, chosen("undo"))),
      // Of rows whose position is not known nobody can tell which changes come after them.
      held.every(name => operation.tables[name].target_position) &&
        way("Replay", "The target's rows and all changes since it, but those that you leave out.", () =>
          replay(operation, chosen("replay")),
        ),
      way("Accept", "The target's rows, and the changes since the rollback.", () =>
        accept(operation, chosen("accept")),
      ),
      way("Resync", "What the source has.", () => resync(operation.pipeline, held, chosen("resync"))),
    ),
  );
}

const way = (name, text, act) => el("li", {}, button(name, act, { id: `way-${name.toLowerCase()}` }), " ", text);
