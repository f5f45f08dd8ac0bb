// Two small plots. What they show stands in words beside them, so nobody needs to see them.

import { el, svg } from "./dom.js";
import { count, duration, many } from "./words.js";

const [WIDTH, HEIGHT] = [600, 120];
// Room for the words on the axis.
const [LEFT, TOP, BOTTOM] = [4, 20, 20];
const BARS = 60;

function figure(name, told, ...drawn) {
  const frame = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${name}: ${told}`, class: "plot" };
  return el("figure", {}, el("figcaption", {}, el("strong", {}, name), " ", told), svg("svg", frame, ...drawn));
}

const word = (x, y, text, anchor = "start") => svg("text", { x, y, "text-anchor": anchor }, text);

// What the newest snapshots have changed, but for copies, beside which all others would be nothing: above the line what came (inserted filled, updated striped), below it what went.
export function changesPlot(snapshots) {
  const shown = snapshots.filter(one => one.inserted !== null && one.kind !== "copy").slice(-BARS);
  if (shown.length === 0) return null;
  const up = Math.max(...shown.map(one => one.inserted + one.updated));
  const down = Math.max(...shown.map(one => one.deleted));
  const scale = (HEIGHT - TOP - BOTTOM) / Math.max(1, up + down);
  const axis = TOP + up * scale;
  const step = (WIDTH - 2 * LEFT) / BARS;
  const bar = (one, place) => {
    const x = LEFT + place * step + 1;
    const box = (y, rows, kind) =>
      rows > 0 && svg("rect", { x, y, width: step - 2, height: Math.max(1, rows * scale), class: kind });
    return [
      box(axis - one.inserted * scale, one.inserted, "plus"),
      box(axis - (one.inserted + one.updated) * scale, one.updated, "tilde"),
      box(axis, one.deleted, "minus"),
    ];
  };
  const stripes = svg(
    "pattern",
    { id: "stripes", width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { width: 4, height: 4, class: "ground" }),
    svg("rect", { width: 2, height: 4, class: "stripe" }),
  );
  const told = `${many(shown.length, "snapshot")}, at most ${count(up)} rows inserted (filled) and updated (striped), ${count(down)} deleted (below) in one`;
  return figure(
    "Changes per snapshot",
    told,
    svg("defs", {}, stripes),
    shown.map((one, place) => bar(one, place + BARS - shown.length)),
    svg("line", { x1: LEFT, x2: WIDTH - LEFT, y1: axis, y2: axis }),
    word(LEFT, TOP - 5, count(up)),
    word(LEFT, HEIGHT - 4, "older"),
    word(WIDTH - LEFT, HEIGHT - 4, "newest", "end"),
  );
}

// How far behind a pipeline was since the page was opened.
export function lagPlot(name, ring) {
  const known = ring.filter(point => point.value !== null);
  if (known.length < 2) return el("p", { class: "quiet" }, `${name}: a moment, the plot needs two looks at it.`);
  const [begin, end] = [ring[0].at, ring[ring.length - 1].at];
  const most = Math.max(1, ...known.map(point => point.value));
  const x = at => LEFT + ((at - begin) / Math.max(1, end - begin)) * (WIDTH - 2 * LEFT);
  const y = value => HEIGHT - BOTTOM - (value / most) * (HEIGHT - TOP - BOTTOM);
  // A look that failed leaves a gap.
  let path = "";
  let isDown = false;
  for (const { at, value } of ring) {
    if (value !== null) path += `${isDown ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    isDown = value !== null;
  }
  const now = known[known.length - 1].value;
  const told = `now ${duration(now)}, at most ${duration(most)} in the last ${duration((end - begin) / 1000)}`;
  return figure(
    name,
    told,
    svg("line", { x1: LEFT, x2: WIDTH - LEFT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    svg("path", { d: path }),
    word(LEFT, TOP - 5, duration(most)),
    word(LEFT, HEIGHT - 4, `${duration((end - begin) / 1000)} ago`),
    word(WIDTH - LEFT, HEIGHT - 4, "now", "end"),
  );
}
