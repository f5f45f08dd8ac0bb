// A rollback in four steps: the target, what it would do, why, and the confirmation of exactly what was shown. What has
// moved meanwhile is shown, and looked at again; what was typed stays.

import { Problem, get, me, now, operates, post, tableAt } from "./api.js";
import { button, el, facts, link, right, rightHead, table, tableLink, tell } from "./dom.js";
import { attempt, choice, empty, field, form, loading, reasonField, trouble } from "./forms.js";
import { look } from "./watch.js";
import { code, count, dash, duration, many, time } from "./words.js";

const STEPS = ["Target", "Preview", "Reason", "Confirm"];
const PAUSE = "On a table that never rests, pause the pipeline first and resume it afterwards: then nothing moves in between.";

export async function rollbackView(main, [pipeline], signal, asked) {
  main.append(el("h1", {}, `Roll back ${pipeline}`));
  if (!operates()) return main.append(empty(`The role ${me.role} does not roll back.`));
  const place = el("div", {}, loading("Tables"));
  main.append(place);
  try {
    const [{ tables }, own] = await Promise.all([get("tables", signal), get(`pipelines/${encodeURIComponent(pipeline)}`, signal)]);
    const names = own.tables.map(one => one.table);
    const mirrors = tables.filter(one => one.kind === "mirror" && names.includes(one.table)).map(one => one.table);
    if (mirrors.length === 0) return place.replaceChildren(empty("The pipeline has no mirrors that this token may see."));
    place.replaceChildren();
    new Rollback(place, pipeline, own, mirrors, asked, signal).draw();
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(trouble(error));
  }
}

class Rollback {
  constructor(place, pipeline, own, mirrors, asked, signal) {
    Object.assign(this, { place, pipeline, own, mirrors, signal });
    const one = asked.get("table");
    this.target = {
      kind: one ? "snapshot_id" : "cut",
      table: mirrors.includes(one) ? one : mirrors[0],
      tables: new Set(mirrors),
      snapshot_id: asked.get("snapshot") ?? "",
      tag: "",
      cut: "",
      as_of: "",
    };
    this.step = 0;
    // Snapshots of the table that is chosen; null until they are there.
    this.snapshots = null;
    this.plan = null;
    // What has moved since the plan before.
    this.moved = null;
    this.reason = "";
    // Of the confirmation of one plan with one reason: a repeat of it begins nothing twice.
    this.key = null;
    this.trouble = el("div");
  }

  go(step) {
    this.step = step;
    this.trouble.replaceChildren();
    this.draw();
    this.place.querySelector("[aria-current] h2").focus({ preventScroll: true });
    this.place.querySelector("[aria-current]").scrollIntoView({ block: "nearest" });
  }

  draw() {
    const bodies = [() => this.drawTarget(), () => this.drawPreview(), () => this.drawReason(), () => this.drawConfirm()];
    const done = [() => this.targetInWords(), () => this.planInWords(), () => this.reason, () => ""];
    const step = (name, number) => {
      const isNow = number === this.step;
      const summary = number < this.step && [el("span", { class: "summary" }, done[number]()), " ", button(number === 1 ? "Show" : "Change", () => this.go(number), { class: "small" })];
      return el("li", { "aria-current": isNow && "step" }, el("div", { class: "beside" }, el("h2", { tabindex: "-1" }, name), summary), isNow && bodies[number](), isNow && this.trouble);
    };
    this.place.replaceChildren(el("ol", { class: "steps" }, STEPS.map(step)));
  }

  // Step 1.

  drawTarget() {
    const { target, mirrors } = this;
    const isOne = target.kind === "snapshot_id" || target.kind === "tag";
    const kinds = [["snapshot_id", "a snapshot of one table"], ["tag", "a tag of one table"], ["cut", "a cut of several tables"], ["as_of", "a time of several tables"]];
    const kind = choice("kind", kinds, target.kind, chosen => {
      target.kind = chosen;
      this.draw();
      this.place.querySelector("[name=kind]").focus();
    });
    const next = el("button", { type: "submit", class: "main" }, "Preview");
    return form(() => this.preview([next]),
      field("Back to", kind),
      isOne ? this.oneTable() : this.severalTables(),
      el("p", { class: "help" }, "The preview changes nothing. It counts rows, which may take a while."),
      el("div", { class: "buttons" }, next));
  }

  oneTable() {
    const { target, mirrors } = this;
    const which = choice("table", mirrors.map(name => [name, name]), target.table, chosen => {
      Object.assign(target, { table: chosen, snapshot_id: "", tag: "" });
      this.snapshots = null;
      this.draw();
    });
    const point = el("div", {}, loading("Snapshots"));
    this.points(point);
    return [field("Table", which), point];
  }

  async points(place) {
    const { target } = this;
    try {
      this.snapshots ??= (await get(`${tableAt(target.table)}/snapshots`, this.signal)).snapshots.toReversed();
    } catch (error) {
      if (error.name !== "AbortError") place.replaceChildren(trouble(error));
      return;
    }
    const say = one => `${one.committed_at.replace("T", " ").replace(/\.\d+/, "")}  ${one.kind}  ${one.snapshot_id}`;
    const options = target.kind === "snapshot_id"
      ? this.snapshots.slice(1).map(one => [one.snapshot_id, say(one)])
      : this.snapshots.flatMap(one => one.tags.map(tag => [tag, `${tag}, ${one.committed_at}`]));
    if (options.length === 0) return place.replaceChildren(empty(target.kind === "tag" ? "The table has no tags." : "The table has no older snapshot."));
    const name = target.kind;
    if (!options.some(([value]) => value === target[name])) target[name] = options[0][0];
    place.replaceChildren(field(name === "tag" ? "Tag" : "Snapshot", choice(name, options, target[name], chosen => (target[name] = chosen))));
  }

  severalTables() {
    const { target, mirrors, own } = this;
    const input = el("input", { type: "text", autocomplete: "off", spellcheck: "false", name: target.kind, input: event => (target[target.kind] = event.target.value) });
    input.value = target[target.kind];
    const box = name => el("label", { class: "box" },
      el("input", { type: "checkbox", value: name, checked: target.tables.has(name), change: event => (event.target.checked ? target.tables.add(name) : target.tables.delete(name)) }), " ", name);
    const help = target.kind === "cut"
      ? `A position, as snapshots show it under to${own.cut ? `; the newest cut is ${own.cut.position}` : ""}.`
      : "Date and time with its zone, such as 2026-11-21T09:30:00Z.";
    return [
      field(target.kind === "cut" ? "Cut" : "Time", input, help),
      el("fieldset", {}, el("legend", {}, `Tables, ${mirrors.length} in all`), mirrors.map(box)),
    ];
  }

  wanted() {
    const { target, mirrors, pipeline } = this;
    const point = target[target.kind].trim();
    if (point === "") throw new Problem(400, { detail: "Say where to go back to." });
    if (target.kind === "snapshot_id" || target.kind === "tag") return { pipeline, tables: [target.table], [target.kind]: point };
    if (target.tables.size === 0) throw new Problem(400, { detail: "Choose at least one table." });
    const tables = target.tables.size === mirrors.length ? {} : { tables: [...target.tables] };
    return { pipeline, ...tables, [target.kind]: point };
  }

  targetInWords() {
    const { target } = this;
    const isOne = target.kind === "snapshot_id" || target.kind === "tag";
    const words = { snapshot_id: "snapshot", tag: "tag", cut: "cut", as_of: "time" };
    return `${isOne ? target.table : many(target.tables.size, "table")} to ${words[target.kind]} ${target[target.kind]}`;
  }

  // Step 2. Asked for again after a plan that has moved or expired.

  async preview(buttons, before = null, cause = null) {
    const plan = await attempt(this.trouble, buttons, async () => post("rollbacks", this.wanted(), { signal: this.signal }));
    if (plan === undefined) return;
    this.moved = before && moves(before, plan, cause);
    Object.assign(this, { plan, key: null });
    this.go(1);
    tell("The preview is there.");
  }

  drawPreview() {
    const { plan, moved } = this;
    const row = one => [
      el("a", { href: tableLink(one.table) }, one.table),
      right(`+${count(one.inserted)}`), right(`~${count(one.updated)}`), right(`-${count(one.deleted)}`),
      right(count(one.snapshots_undone)),
      el("code", {}, `${one.position} → ${one.target_position ?? "unknown"}`),
      one.exits.join(", "),
    ];
    const head = ["Table", ...["Rows that come back", "change", "go", "Snapshots undone"].map(rightHead), "Position → target's", "Ways out"];
    const again = button("Look again", () => this.preview([again], plan));
    return el("div", {},
      moved,
      table("What the rollback would do", head, plan.tables.map(row)),
      el("h3", {}, "What is lost"), lost(plan),
      el("p", { class: "help" }, "It is done on exactly this, until ", time(plan.expires_at), "; nothing is changed where a table moves before. ", PAUSE),
      el("div", { class: "buttons" }, button("Go on", () => this.go(2), { class: "main" }), again));
  }

  planInWords() {
    const sum = key => this.plan.tables.reduce((all, one) => all + one[key], 0);
    return `${many(this.plan.tables.length, "table")}: ${many(sum("inserted"), "row")} come back, ${count(sum("updated"))} change, ${count(sum("deleted"))} go`;
  }

  // Step 3.

  drawReason() {
    const next = el("button", { type: "submit", class: "main" }, "Go on");
    return form(() => {
      if (this.reason.trim() === "") {
        this.trouble.replaceChildren(el("p", { class: "trouble", role: "alert" }, "Say why: a reason is never blank."));
        return this.place.querySelector("[name=reason]").focus();
      }
      this.key = null;
      this.go(3);
    }, reasonField(this.reason, typed => (this.reason = typed)), el("div", { class: "buttons" }, next));
  }

  // Step 4.

  drawConfirm() {
    const { plan } = this;
    const left = (Date.parse(plan.expires_at) - now()) / 1000;
    const go = el("button", { type: "submit", class: "danger" }, `Roll back ${many(plan.tables.length, "table")}`);
    return form(() => this.confirm([go]),
      facts([["Tables", plan.tables.map(one => one.table).join(", ")], ["Reason", this.reason], ["By", me.principal], ["Plan until", [time(plan.expires_at), left > 0 ? `, ${duration(left)} left` : ", which is over"]]]),
      el("p", {}, "Afterwards the tables are held: they take no changes until somebody chooses undo, replay, accept or a resync."),
      el("div", { class: "buttons" }, go));
  }

  async confirm(buttons) {
    const { plan } = this;
    this.key ??= newKey();
    const headers = { "if-match": plan.etag, "idempotency-key": this.key };
    let over = null;
    const operation = await attempt(this.trouble, buttons, async () => {
      try {
        return await post(`rollbacks/${encodeURIComponent(plan.id)}/confirm`, { reason: this.reason.trim() }, { headers });
      } catch (error) {
        // Moved, or expired: nothing was changed. Anything else stays as it is, and may be sent again under the same key.
        if (error.status === 412 || error.code === "PLAN_UNKNOWN") over = error;
        if (error.status === 0) error.detail += "; sent again it begins nothing twice";
        throw error;
      }
    });
    if (operation !== undefined) {
      look();
      location.hash = link(["operations", operation.id]);
    } else if (over !== null) {
      await this.preview(buttons, plan, over);
    }
  }
}

// Of tables: what was looked at and what stands there now, and the answer that has told so.
function moves(before, after, cause) {
  const then = new Map(before.tables.map(one => [one.table, one]));
  const moved = after.tables.filter(one => then.get(one.table)?.head !== one.head);
  const told = cause && facts([["Code", code(cause.code)], ["Request", el("code", {}, cause.requestId)]]);
  if (moved.length === 0) return el("div", { class: "note" }, el("p", {}, "Looked at again: no table has moved."), told);
  const row = one => {
    const old = then.get(one.table);
    return [one.table, el("code", {}, `${dash(old?.head)} → ${one.head}`), el("code", {}, `${dash(old?.position)} → ${dash(one.position)}`), right(count(one.snapshots_undone - (old?.snapshots_undone ?? 0)))];
  };
  return el("div", { class: "note" }, el("p", {}, "These tables have moved since the preview before; nothing was changed. Below is what a rollback would do now."),
    table("What has moved", ["Table", "Head", "Position", rightHead("More snapshots")], moved.map(row)), told);
}

function lost(plan) {
  const sum = key => plan.tables.reduce((all, one) => all + one[key], 0);
  const without = plan.tables.filter(one => !one.exits.includes("replay")).map(one => one.table);
  return el("ul", {},
    el("li", {}, `From the newest rows ${many(sum("deleted"), "row")} that came since the target go, and so do the newer values of ${many(sum("updated"), "row")}.`),
    el("li", {}, "No file and no snapshot is deleted: the heads of now stay under tags, and undo brings their rows back."),
    el("li", {}, "The source is not changed. After accept the tables differ from it until a resync."),
    without.length > 0 && el("li", {}, `No replay for ${without.join(", ")}: no history reaches back to the target, so what was between can only be had by undo or a resync.`));
}

// Of a page that came over plain HTTP from elsewhere, browsers keep randomUUID back.
function newKey() {
  return crypto.randomUUID?.() ?? [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("");
}
