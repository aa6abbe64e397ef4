// The histogram of all scores, with the threshold as a handle that can be dragged, or moved by keys.
import { $, draw } from "./dom.js";
import { shown, state } from "./state.js";

const WIDTH = 460, HEIGHT = 156, LEFT = 6, RIGHT = 6, TOP = 24, BOTTOM = 26, BINS = 50, NARROWEST = 0.01;
let svg = null, bars = null, handle = null, ends = [];
let axis = [0, 1], dragged = false;
const x = (score) => LEFT + ((score - axis[0]) / (axis[1] - axis[0])) * (WIDTH - LEFT - RIGHT);
const number = (value) => String(Number(value.toFixed(6)));

export function buildHistogram() {
  svg = draw("svg", { class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": "Histogram of scores" });
  const floor = HEIGHT - BOTTOM;
  bars = draw("g", { role: "img" });
  handle = draw("g", { class: "handle", role: "slider", tabindex: 0, "aria-label": "Score threshold", "aria-valuemin": 0, "aria-valuemax": 1 });
  handle.append(
    draw("rect", { x: -12, y: 0, width: 24, height: floor }), draw("line", { x1: 0, x2: 0, y1: TOP - 6, y2: floor }),
    draw("circle", { cx: 0, cy: floor, r: 6 }), draw("text", { y: 12 }),
  );
  svg.append(bars, draw("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: floor + 0.5, y2: floor + 0.5 }));
  ends = [[LEFT, "start"], [WIDTH - RIGHT, "end"]].map(([at, anchor]) => draw("text", { class: "end", x: at, y: HEIGHT - 5, "text-anchor": anchor }));
  svg.append(...ends, draw("text", { x: WIDTH / 2, y: HEIGHT - 5, "text-anchor": "middle" }, "image score"), handle);
  svg.addEventListener("pointerdown", drag);
  handle.addEventListener("keydown", step);
  $("histogram").append(svg);
}

// The part of 0 to 1 that has all scores, and the threshold too unless it is far from them; its ends are round numbers.
function axisOf(scores, limit) {
  if (!scores.length) return [0, 1];
  let low = scores.reduce((a, b) => Math.min(a, b)), high = scores.reduce((a, b) => Math.max(a, b));
  const near = Math.max(high - low, NARROWEST) / 2;
  if (limit !== null && limit >= low - near && limit <= high + near) [low, high] = [Math.min(low, limit), Math.max(high, limit)];
  const missing = Math.max(NARROWEST - (high - low), 0) / 2;
  [low, high] = [low - missing, high + missing];
  const unit = 10 ** Math.floor(Math.log10((high - low) / 5)), round = [1, 2, 5, 10].find((one) => one * unit * 6 >= high - low) * unit;
  const end = (value) => Math.min(Math.max(Number(value.toFixed(6)), 0), 1);
  return [end(round * Math.floor(low / round + 1e-6)), end(round * Math.ceil(high / round - 1e-6))];
}

// Steps of the threshold by keys: about a hundredth of what is shown.
export const scoreStep = () => Math.max(0.0001, Number((0.01 * (axis[1] - axis[0])).toPrecision(1)));

function drag(event) {
  if (event.button) return;
  event.preventDefault();
  handle.focus({ preventScroll: true });
  dragged = true; // the axis stays as it is
  const move = ({ clientX }) => {
    const box = svg.getBoundingClientRect();
    const share = (((clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    const score = axis[0] + Math.min(Math.max(share, 0), 1) * (axis[1] - axis[0]);
    state.setThreshold("score", Math.round(1e4 * score) / 1e4);
  };
  svg.setPointerCapture(event.pointerId);
  svg.addEventListener("pointermove", move);
  svg.addEventListener("lostpointercapture", () => {
    svg.removeEventListener("pointermove", move);
    dragged = false;
    showHistogram();
  }, { once: true });
  move(event);
}

const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };

function step(event) {
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  event.stopPropagation();
  const moved = (state.thresholds.score ?? middle()) + STEPS[event.key] * scoreStep();
  state.setThreshold("score", Math.round(1e6 * Math.min(Math.max(moved, 0), 1)) / 1e6);
}

export const middle = () => (axis[0] + axis[1]) / 2;

export function showHistogram() {
  const limit = state.thresholds.score, done = state.items.filter((item) => item.status === "done");
  if (!dragged) axis = axisOf(done.map((item) => item.score), limit);
  const [low, high] = axis, normal = new Array(BINS).fill(0), anomalous = new Array(BINS).fill(0);
  for (const item of done) {
    const bin = Math.floor(((item.score - low) / (high - low)) * BINS);
    (state.verdict(item) ? anomalous : normal)[Math.min(Math.max(bin, 0), BINS - 1)]++;
  }
  const above = anomalous.reduce((sum, count) => sum + count, 0);
  drawBars(limit === null ? "p" : "n", normal, anomalous);
  ends.forEach((text, i) => { text.textContent = number(axis[i]); });
  const judged = limit === null ? "" : `; ${above} at or above the threshold`;
  bars.setAttribute("aria-label", `${done.length} scores from ${number(low)} to ${number(high)}${judged}`);
  showHandle(limit, above, done.length);
}

function drawBars(kindBelow, normal, anomalous) {
  const highest = Math.max(1, ...normal.map((count, i) => count + anomalous[i])), room = HEIGHT - TOP - BOTTOM;
  const edge = (i) => axis[0] + (i / BINS) * (axis[1] - axis[0]), width = x(edge(1)) - x(edge(0));
  bars.replaceChildren();
  for (let i = 0; i < BINS; i++) {
    let bottom = HEIGHT - BOTTOM;
    for (const [kind, count] of [[kindBelow, normal[i]], ["a", anomalous[i]]]) {
      if (!count) continue;
      const height = Math.max(1, (room * count) / highest);
      bottom -= height;
      const bar = draw("rect", { class: kind, x: x(edge(i)) + 0.5, y: bottom, width: width - 1, height });
      bar.append(draw("title", {}, `${count} from ${shown(edge(i))} to ${shown(edge(i + 1))}`));
      bars.append(bar);
    }
  }
}

// A threshold outside of what is shown stands at the edge, dashed, with an arrow.
function showHandle(limit, above, all) {
  const [low, high] = axis, at = limit ?? middle(), place = x(Math.min(Math.max(at, low), high)), text = handle.lastChild;
  const side = at < low ? "below" : at > high ? "above" : "";
  handle.setAttribute("transform", `translate(${place} 0)`);
  handle.classList.toggle("beyond", side !== "");
  handle.setAttribute("aria-valuenow", at.toFixed(4));
  handle.setAttribute("aria-valuetext", limit === null ? "not set" : `${shown(at)}, ${side ? `${side} all scores, ` : ""}${above} of ${all} anomalous`);
  const said = limit === null ? "drag to set a threshold" : `threshold ${shown(at)}`;
  text.textContent = side === "below" ? `← ${said}` : side === "above" ? `${said} →` : said;
  text.setAttribute("text-anchor", place < 0.2 * WIDTH ? "start" : place > 0.8 * WIDTH ? "end" : "middle");
}
