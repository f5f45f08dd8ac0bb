// What operators may order, each with its reason and a second look. Where a role may not, nothing of it is drawn: see
// `operates` at each place.

import { post } from "./api.js";
import { el, link } from "./dom.js";
import { choice, field, order } from "./forms.js";
import { look } from "./watch.js";

const pipelineAt = name => `pipelines/${encodeURIComponent(name)}`;
const operationAt = id => `operations/${encodeURIComponent(id)}`;

export const pause = name =>
  order({
    title: `Pause ${name}`,
    text: "The pipeline stands still from its next cut on, until somebody resumes it. Its source keeps its changes meanwhile: a PostgreSQL slot holds WAL on the source's disk.",
    verb: "Pause",
    give: body => post(`${pipelineAt(name)}/pause`, body),
    done: look,
  });

export const resume = name =>
  order({
    title: `Resume ${name}`,
    text: "The pipeline goes on from its cut within a minute.",
    hasReason: false,
    verb: "Resume",
    give: () => post(`${pipelineAt(name)}/resume`, {}),
    done: look,
  });

// A choice of tables: what is asked, and how the answer is read.
function choiceOf(tables, checked) {
  const boxes = tables.map(name => el("input", { type: "checkbox", value: name, checked }));
  const rows = tables.map((name, place) => el("label", { class: "box" }, boxes[place], " ", name));
  const chosen = () => {
    const names = boxes.filter(box => box.checked).map(box => box.value);
    if (names.length === 0) throw new Error("Choose at least one table.");
    return names;
  };
  return [el("fieldset", {}, el("legend", {}, "Tables"), rows), chosen];
}

// One table, or a choice of several.
export function resync(pipeline, tables, done = () => {}) {
  const [boxes, chosen] = choiceOf(tables, tables.length === 1);
  order({
    title: tables.length === 1 ? `Resync ${tables[0]}` : `Resync tables of ${pipeline}`,
    text: "The table is copied anew from its source, beside what stands there; readers see the old rows until one commit replaces them all. Its history begins anew there, and other tables of the pipeline wait for the copy.",
    more: tables.length === 1 ? [] : [boxes],
    read: () => ({ tables: chosen() }),
    words: body => [["Tables", body.tables.join(", ")]],
    verb: "Resync",
    give: body => post(`${pipelineAt(pipeline)}/resync`, body),
    done: answer => {
      look();
      done(answer);
    },
  });
}

// All of a pipeline are not named: then a mirror that is missing is found, too.
export function verify(pipeline, tables) {
  const [boxes, chosen] = choiceOf(tables, true);
  order({
    title: `Verify ${pipeline}`,
    text: "Every row of the source is compared with the mirror, while both go on. Nothing is changed, but the source is read in full.",
    more: [boxes],
    read: () => {
      const names = chosen();
      return names.length === tables.length ? {} : { tables: names };
    },
    words: body => [["Tables", body.tables?.join(", ") ?? "all of the pipeline"]],
    verb: "Verify",
    give: body => post(`${pipelineAt(pipeline)}/verify`, body),
    done: ({ id }) => (location.hash = link(["verifications", id])),
  });
}

export const undo = (operation, done) =>
  order({
    title: "Undo the rollback",
    text: "The tables get the rows from before the rollback, and all changes since. For a rollback that was the mistake.",
    words: () => [["Tables", Object.keys(operation.tables).join(", ")]],
    verb: "Undo",
    give: body => post(`${operationAt(operation.id)}/undo`, body),
    done,
  });

export const abort = (operation, done) =>
  order({
    title: "Abort the operation",
    text: "An operation that is still going forward turns back: every table gets the rows that it had.",
    words: () => [["Tables", Object.keys(operation.tables).join(", ")]],
    verb: "Abort",
    give: body => post(`${operationAt(operation.id)}/abort`, body),
    done,
  });

export const accept = (operation, done) =>
  order({
    title: "Accept the rollback",
    text: "The tables keep the target's rows and take the changes since the rollback. What was between stays away: the tables differ from their source from then on, and verify says so until a resync.",
    words: () => [["Tables", Object.keys(operation.tables).join(", ")]],
    verb: "Accept",
    give: body => post(`${operationAt(operation.id)}/accept`, body),
    done,
  });

export function replay(operation, done) {
  const without = el("input", { type: "text", inputmode: "numeric", autocomplete: "off", name: "without" });
  const [after, upTo] = ["after", "up_to"].map(name => el("input", { type: "text", autocomplete: "off", name }));
  const names = Object.keys(operation.tables);
  const which = choice("tables", [["", "all of the operation"], ...names.map(name => [name, name])], "");
  const read = () => {
    const body = {};
    const ids = without.value.split(/[\s,]+/).filter(Boolean);
    const wrong = ids.find(id => !/^\d+$/.test(id));
    if (wrong) throw new Error(`${wrong} is no number of a transaction.`);
    if (ids.length > 0) body.without = ids;
    const range = [after.value.trim(), upTo.value.trim()];
    if (range.some(Boolean) && !range.every(Boolean))
      throw new Error("A range has two positions: after the first, up to the second.");
    if (range.every(Boolean)) body.without_range = { after: range[0], up_to: range[1] };
    if (which.value !== "") body.tables = [which.value];
    return body;
  };
  order({
    title: "Replay the changes",
    text: "The tables get the target's rows and, from their histories, all changes since it, but those that are left out here. With something left out they differ from their source.",
    more: [
      names.length > 1 && field("Tables", which),
      field(
        "Leave out transactions",
        without,
        "Numbers with commas between them: the column _cdc_transaction_id of the history.",
      ),
      el(
        "fieldset",
        {},
        el("legend", {}, "Leave out a range of positions"),
        field("After", after),
        field("Up to", upTo),
      ),
    ],
    read,
    words: body =>
      [
        ["Tables", body.tables?.join(", ") ?? names.join(", ")],
        ["Without", body.without?.join(", ") ?? (body.without_range ? null : "nothing is left out")],
        ["Without range", body.without_range && `after ${body.without_range.after}, up to ${body.without_range.up_to}`],
      ].filter(([, value]) => value),
    verb: "Replay",
    give: body => post(`${operationAt(operation.id)}/replay`, body),
    done,
  });
}
