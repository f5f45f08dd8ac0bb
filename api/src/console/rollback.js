// A rollback in four steps: the target, what it would do, why, and the confirmation of exactly what was shown. What has
// moved meanwhile is shown, and looked at again; what was typed stays.

import { get, list, me, now, operates, post } from "./api.js";
import { button, el, facts, link, tell } from "./dom.js";
import { attempt, empty, form, loading, reasonField, trouble } from "./forms.js";
import { lost, moves, planInWords, planTable } from "./plan.js";
import { Target } from "./target.js";
import { look } from "./watch.js";
import { duration, many, time } from "./words.js";

const STEPS = ["Target", "Preview", "Reason", "Confirm"];
const PAUSE =
  "On a table that never rests, pause the pipeline first and resume it afterwards: then nothing moves in between.";

export async function rollbackView(main, [pipeline], signal, asked) {
  main.append(el("h1", {}, `Roll back ${pipeline}`));
  if (!operates()) return main.append(empty(`The role ${me.role} does not roll back.`));
  const place = el("div", {}, loading("Tables"));
  main.append(place);
  try {
    const [tables, own] = await Promise.all([
      list("tables", "tables", signal),
      get(`pipelines/${encodeURIComponent(pipeline)}`, signal),
    ]);
    const names = own.tables.map(one => one.table);
    const mirrors = tables.filter(one => one.kind === "mirror" && names.includes(one.table)).map(one => one.table);
    if (mirrors.length === 0)
      return place.replaceChildren(empty("The pipeline has no mirrors that this token may see."));
    place.replaceChildren();
    new Rollback(place, pipeline, own, mirrors, asked, signal).draw();
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(trouble(error));
  }
}

class Rollback {
  constructor(place, pipeline, own, mirrors, asked, signal) {
    Object.assign(this, { place, signal });
    this.target = new Target(pipeline, mirrors, own.cut, asked, signal);
    this.step = 0;
    this.plan = null;
    // What has moved since the plan before.
    this.moved = null;
    this.reason = "";
    // Of the confirmation of this plan with one reason: a repeat of it begins nothing twice.
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
    const bodies = [
      () => this.drawTarget(),
      () => this.drawPreview(),
      () => this.drawReason(),
      () => this.drawConfirm(),
    ];
    const done = [() => this.target.inWords(), () => planInWords(this.plan), () => this.reason, () => ""];
    const step = (name, number) => {
      const isNow = number === this.step;
      const summary = number < this.step && [
        el("span", { class: "summary" }, done[number]()),
        " ",
        button(number === 1 ? "Show" : "Change", () => this.go(number), { class: "small" }),
      ];
      return el(
        "li",
        { "aria-current": isNow && "step" },
        el("div", { class: "beside" }, el("h2", { tabindex: "-1" }, name), summary),
        isNow && bodies[number](),
        isNow && this.trouble,
      );
    };
    this.place.replaceChildren(el("ol", { class: "steps" }, STEPS.map(step)));
  }

  drawTarget() {
    const next = el("button", { type: "submit", class: "main" }, "Preview");
    return form(
      () => this.preview([next]),
      this.target.draw(),
      el("p", { class: "help" }, "The preview changes nothing. It counts rows, which may take a while."),
      el("div", { class: "buttons" }, next),
    );
  }

  // Asked for again after a plan that has moved or expired.
  async preview(buttons, before = null, cause = null) {
    const plan = await attempt(this.trouble, buttons, async () =>
      post("rollbacks", this.target.wanted(), { signal: this.signal }),
    );
    if (plan === undefined) return;
    this.moved = before && moves(before, plan, cause);
    Object.assign(this, { plan, key: null });
    this.go(1);
    tell("The preview is there.");
  }

  drawPreview() {
    const { plan, moved } = this;
    const again = button("Look again", () => this.preview([again], plan));
    const until = [
      "It is done on exactly this, until ",
      time(plan.expires_at),
      "; nothing is changed where a table moves before. ",
    ];
    return el(
      "div",
      {},
      moved,
      planTable(plan),
      el("h3", {}, "What is lost"),
      lost(plan),
      el("p", { class: "help" }, until, PAUSE),
      el(
        "div",
        { class: "buttons" },
        button("Go on", () => this.go(2), { class: "main" }),
        again,
      ),
    );
  }

  drawReason() {
    const next = el("button", { type: "submit", class: "main" }, "Go on");
    return form(
      () => {
        if (this.reason.trim() === "") {
          this.trouble.replaceChildren(
            el("p", { class: "trouble", role: "alert" }, "Say why: a reason is never blank."),
          );
          return this.place.querySelector("[name=reason]").focus();
        }
        this.go(3);
      },
      reasonField(this.reason, typed => (this.reason = typed)),
      el("div", { class: "buttons" }, next),
    );
  }

  drawConfirm() {
    const { plan } = this;
    const left = (Date.parse(plan.expires_at) - now()) / 1000;
    const go = el("button", { type: "submit", class: "danger" }, `Roll back ${many(plan.tables.length, "table")}`);
    return form(
      () => this.confirm([go]),
      facts([
        ["Tables", plan.tables.map(one => one.table).join(", ")],
        ["Reason", this.reason],
        ["By", me.principal],
        ["Plan until", [time(plan.expires_at), left > 0 ? `, ${duration(left)} left` : ", which is over"]],
      ]),
      el(
        "p",
        {},
        "Afterwards the tables are held: they take no changes until somebody chooses undo, replay, accept or a resync.",
      ),
      el("div", { class: "buttons" }, go),
    );
  }

  async confirm(buttons) {
    const { plan } = this;
    const reason = this.reason.trim();
    if (this.key?.reason !== reason) this.key = { reason, text: newKey() };
    const headers = { "if-match": plan.etag, "idempotency-key": this.key.text };
    let over = null;
    const operation = await attempt(this.trouble, buttons, async () => {
      try {
        return await post(`rollbacks/${encodeURIComponent(plan.id)}/confirm`, { reason }, { headers });
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

// Of a page that came over plain HTTP from elsewhere, browsers keep randomUUID back.
function newKey() {
  return (
    crypto.randomUUID?.() ??
    [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("")
  );
}
