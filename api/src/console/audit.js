// The audit trail: who has asked for what, and what became of it. For admins.

import { get, me } from "./api.js";
import { el, right, rightHead, table } from "./dom.js";
import { empty, loading } from "./forms.js";
import { pageOf, readPages } from "./pages.js";
import { dash, time } from "./words.js";

export async function auditView(main, _, signal) {
  main.append(el("h1", {}, "Audit"));
  if (me.role !== "admin") return main.append(empty(`The role ${me.role} does not see the audit trail.`));
  const place = el("div", {}, loading("Audit trail"));
  main.append(place);
  await readPages(place, "entries", token => get(pageOf("audit", token), signal), shown);
}

function shown(entries, { kept }) {
  if (!kept) return empty("No audit trail is kept: the configuration has no [audit].");
  if (entries.length === 0) return empty("No entries yet.");
  const row = one => [
    time(one.at),
    one.kind,
    one.action,
    one.principal === "" ? "nobody known" : one.principal,
    one.subject,
    el("span", { class: "value" }, dash(one.reason)),
    el("code", { class: "value" }, JSON.stringify(one.detail)),
    one.via === "http" ? "HTTP" : "command line",
    el("code", {}, one.request_id),
    right(one.sequence),
  ];
  const head = ["At", "Kind", "Action", "Who", "Subject", "Reason", "Detail", "Via", "Request", rightHead("No.")];
  return table("Entries of the audit trail, newest first", head, entries.map(row), { class: "scrolls tall" });
}
