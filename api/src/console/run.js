// A run that somebody has asked for, followed until it has ended: a pass of maintenance, or a verification.

import { get } from "./api.js";
import { el, facts, redraw, tell } from "./dom.js";
import { loading, trouble } from "./forms.js";
import { code, state, time } from "./words.js";

// Between two looks at one that is at work, in milliseconds.
const POLL = 1_000;

// `shown` draws what is this kind's own.
export async function runView(main, title, target, signal, shown) {
  const place = el("div", {}, loading(title));
  main.append(el("h1", {}, title), place);
  let timer = null;
  signal.addEventListener("abort", () => clearTimeout(timer));
  const load = async () => {
    try {
      const run = await get(target, signal);
      redraw(place, head(run), shown(run));
      if (run.state === "running") timer = setTimeout(load, POLL);
      else tell(`${title}: ${run.state}`);
    } catch (error) {
      if (error.name !== "AbortError") redraw(place, trouble(error));
    }
  };
  await load();
}

const head = run =>
  facts([
    ["Id", el("code", {}, run.id)],
    ["State", state(run.state)],
    ["Code", code(run.code)],
    ["What to do", run.remedy],
    ["By", run.by],
    ["Reason", run.reason],
    ["Begun", time(run.begun_at)],
    ["Ended", run.ended_at && time(run.ended_at)],
  ]);
