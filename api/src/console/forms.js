// What the viewer types, what is in its way, and the second look before something is done. A form that failed stays as it
// was typed.

import { button, el, facts, tell } from "./dom.js";
import { code, time } from "./words.js";

// An error in full: what happened, its code, and the id under which the service's log has it.
export function trouble(error) {
  if (error.status === undefined)
    return el("div", { class: "trouble", role: "alert" }, el("p", {}, `This page has failed: ${error.message}`));
  const near = Object.entries(error.nearest ?? {}).filter(([, found]) => found);
  return el(
    "div",
    { class: "trouble", role: "alert" },
    el("p", {}, error.detail),
    near.length > 0 &&
      el(
        "p",
        {},
        "What is kept: ",
        near.map(([which, found]) => [
          `${which} `,
          el("code", {}, found.snapshot_id),
          " of ",
          time(found.committed_at),
          ". ",
        ]),
      ),
    facts([
      ["Code", code(error.code)],
      ["Request", error.requestId && el("code", {}, error.requestId)],
      ["Again in", error.retryAfter && `${error.retryAfter} s`],
    ]),
  );
}

export const loading = what => el("p", { class: "quiet", "aria-busy": "true" }, `${what} …`);
export const empty = text => el("p", { class: "quiet" }, text);

let fields = 0;

export function field(name, control, help) {
  fields += 1;
  control.id = control.id || `field-${fields}`;
  const told = help && el("p", { class: "help", id: `${control.id}-help` }, help);
  if (help) control.setAttribute("aria-describedby", `${control.id}-help`);
  return el("div", { class: "field" }, el("label", { for: control.id }, name), control, told);
}

export const reasonField = (typed, heard = () => {}) => {
  const control = el("textarea", {
    rows: "3",
    maxlength: "1000",
    required: true,
    name: "reason",
    input: event => heard(event.target.value),
  });
  control.value = typed;
  return field("Reason", control, "It is kept with what is done, in the log and in the audit trail.");
};

export function choice(name, options, chosen, heard = () => {}) {
  const control = el("select", { name, change: event => heard(event.target.value) });
  for (const [value, shown] of options) control.append(el("option", { value, selected: value === chosen }, shown));
  return control;
}

// A form whose submission is ours: nothing is sent by the browser.
export function form(act, ...children) {
  const sent = event => {
    event.preventDefault();
    act();
  };
  return el("form", { submit: sent, novalidate: true }, ...children);
}

// Shows what an act comes to in `place`: waiting, then the element that it gives, if one, or the trouble. Its buttons are
// off meanwhile.
export async function attempt(place, buttons, act) {
  buttons.forEach(one => (one.disabled = true));
  place.replaceChildren(loading("Asking"));
  try {
    const done = await act();
    place.replaceChildren(...(done instanceof Node ? [done] : []));
    return done;
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    place.replaceChildren(trouble(error));
    return undefined;
  } finally {
    buttons.forEach(one => (one.disabled = false));
  }
}

// Asks for what an order needs, shows it once more, and gives it. `more` are further fields, `read` makes the order's body
// of them, `words` says it in words, `give` sends it.
export function order({
  title,
  text,
  hasReason = true,
  more = [],
  read = () => ({}),
  words = () => [],
  verb,
  give,
  done = () => {},
}) {
  const place = el("div");
  const dialog = el("dialog", { "aria-label": title, close: () => dialog.remove() });
  const typed = hasReason ? reasonField("") : null;
  const reason = () => typed?.querySelector("textarea").value.trim();
  const leave = () => button("Cancel", () => dialog.close());

  const ask = () => {
    const next = el("button", { type: "submit", class: "main" }, "Go on");
    const wanted = form(
      () => {
        if (hasReason && reason() === "") {
          place.replaceChildren(el("p", { class: "trouble", role: "alert" }, "Say why: a reason is never blank."));
          typed.querySelector("textarea").focus();
          return;
        }
        try {
          confirm(read());
        } catch (error) {
          place.replaceChildren(el("p", { class: "trouble", role: "alert" }, error.message));
        }
      },
      more,
      typed,
      el("div", { class: "buttons" }, next, leave()),
    );
    dialog.replaceChildren(el("h2", {}, title), el("p", {}, text), wanted, place);
    place.replaceChildren();
    dialog.querySelector("input, textarea, select")?.focus();
  };

  const confirm = body => {
    const go = el("button", { type: "submit", class: "danger" }, verb);
    const sure = form(
      async () => {
        const answer = await attempt(place, [go], () => give(hasReason ? { ...body, reason: reason() } : body));
        if (answer === undefined) return;
        dialog.close();
        tell(`${verb}: done`);
        done(answer);
      },
      el("div", { class: "buttons" }, go, button("Back", ask), leave()),
    );
    const said = [...words(body), hasReason && ["Reason", reason()]].filter(Boolean);
    dialog.replaceChildren(el("h2", {}, title), el("p", {}, text), facts(said), sure, place);
    place.replaceChildren();
    go.focus();
  };

  document.body.append(dialog);
  ask();
  dialog.showModal();
}
