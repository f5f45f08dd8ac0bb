// One verification of a pipeline: while it is at work, and its verdict.

import { el, facts, right, rightHead, table, tableLink } from "./dom.js";
import { runView } from "./run.js";
import { count, state } from "./words.js";

export const verificationView = (main, [id], signal) =>
  runView(main, "Verification", `verifications/${encodeURIComponent(id)}`, signal, shown);

function shown({ pipeline, report }) {
  const numbers = ["Rows of the source", "Of the mirror", "Only in source", "Only in mirror", "Differing"];
  const head = ["Table", "Verdict", ...numbers.map(rightHead), "Digests of keys that differ"];
  return [
    facts([
      ["Pipeline", pipeline],
      ["Verdict", report && state(report.verdict)],
      ["At", report && el("code", {}, report.position)],
      ["Against", report && `the ${report.against}`],
    ]),
    report && table("Verdicts", head, report.tables.map(row)),
  ];
}

const row = one => [
  el("a", { href: tableLink(one.table) }, one.table),
  [state(one.verdict), one.quarantined > 0 && ` ${count(one.quarantined)} in quarantine`],
  right(count(one.source_rows)),
  right(count(one.mirror_rows)),
  right(count(one.only_in_source)),
  right(count(one.only_in_mirror)),
  right(count(one.differing)),
  one.samples.length === 0
    ? "–"
    : el("details", {}, el("summary", {}, count(one.samples.length)), one.samples.map(sample)),
];

const sample = ({ difference, key }) => el("div", {}, el("code", {}, key), ` ${difference.replaceAll("_", " ")}`);
