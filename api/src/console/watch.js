// How pipelines stand, asked for every five seconds while somebody is signed in, and what they were like since the page was
// opened. The one place that asks again by itself; views listen.

import { events, list, me, now } from "./api.js";
import { since } from "./words.js";

const EVERY = 5_000;
// An hour of them.
const POINTS = 720;

export const watched = { pipelines: null, problem: null, rings: new Map() };

const listeners = new Set();
let timer = null;
// Of looks: only the last one counts.
let turn = 0;

// Calls back after each look, and at once if there was one; until the signal.
export function watch(signal, heard) {
  listeners.add(heard);
  signal.addEventListener("abort", () => listeners.delete(heard));
  if (watched.pipelines !== null || watched.problem !== null) heard();
}

// Looks now: something was changed from here. The next look comes behind the answer, however long that takes.
export async function look() {
  clearTimeout(timer);
  if (me === null) return;
  turn += 1;
  const mine = turn;
  let [found, problem] = [null, null];
  try {
    found = await list("pipelines", "pipelines");
  } catch (error) {
    problem = error;
  }
  // Somebody has signed out, or looked again, meanwhile: this answer is not for who looks now.
  if (me === null || mine !== turn) return;
  watched.problem = problem;
  watched.pipelines = found ?? watched.pipelines;
  watched.pipelines?.forEach(pipeline => remember(pipeline.name, found === null ? null : behind(pipeline)));
  timer = setTimeout(look, EVERY);
  listeners.forEach(heard => heard());
}

// The lag, where the service knows it; else the age of the cut.
const behind = pipeline => pipeline.lag_seconds ?? (pipeline.cut ? since(pipeline.cut.committed_at) : null);

function remember(name, value) {
  const ring = watched.rings.get(name) ?? [];
  ring.push({ at: now(), value });
  if (ring.length > POINTS) ring.shift();
  watched.rings.set(name, ring);
}

// Of another viewer, nothing.
export function forget() {
  Object.assign(watched, { pipelines: null, problem: null, rings: new Map() });
  clearTimeout(timer);
  turn += 1;
}

events.addEventListener("in", look);
events.addEventListener("out", () => clearTimeout(timer));

// The pipeline of a table, and how it stands there; a table that no pipeline has gives nothing.
export function ownerOf(name) {
  for (const pipeline of watched.pipelines ?? []) {
    const table = pipeline.tables.find(table => table.table === name);
    if (table) return { pipeline, table };
  }
  return null;
}
