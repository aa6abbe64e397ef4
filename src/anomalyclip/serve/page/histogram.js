// The histogram of all scores, with the threshold as a handle that can be dragged, or moved by keys.
import { $, draw } from "./dom.js";
import { state } from "./state.js";

const WIDTH = 460, HEIGHT = 156, LEFT = 6, RIGHT = 6, TOP = 24, BOTTOM = 26, BINS = 50;
const x = (score) => LEFT + score * (WIDTH - LEFT - RIGHT);
let svg = null, bars = null, handle = null;

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
  for (const [score, text, anchor] of [[0, "0", "start"], [0.5, "image score", "middle"], [1, "1", "end"]]) {
    svg.append(draw("text", { x: x(score), y: HEIGHT - 5, "text-anchor": anchor }, text));
  }
  svg.append(handle);
  svg.addEventListener("pointerdown", drag);
  handle.addEventListener("keydown", step);
  $("histogram").append(svg);
}

function drag(event) {
  if (event.button) return;
  event.preventDefault();
  handle.focus({ preventScroll: true });
  const move = ({ clientX }) => {
    const box = svg.getBoundingClientRect();
    const score = (((clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    state.setThreshold("score", Math.round(1000 * Math.min(Math.max(score, 0), 1)) / 1000);
  };
  svg.setPointerCapture(event.pointerId);
  svg.addEventListener("pointermove", move);
  svg.addEventListener("lostpointercapture", () => svg.removeEventListener("pointermove", move), { once: true });
  move(event);
}

const STEPS = { ArrowLeft: -0.005, ArrowDown: -0.005, ArrowRight: 0.005, ArrowUp: 0.005, PageDown: -0.05, PageUp: 0.05, Home: -1, End: 1 };

function step(event) {
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  event.stopPropagation();
  state.setThreshold("score", Math.round(1e6 * ((state.thresholds.score ?? 0.5) + STEPS[event.key])) / 1e6);
}

export function showHistogram() {
  const limit = state.thresholds.score, normal = new Array(BINS).fill(0), anomalous = new Array(BINS).fill(0);
  let above = 0, all = 0;
  for (const item of state.items) {
    if (item.status !== "done") continue;
    const bins = state.verdict(item) ? anomalous : normal;
    bins[Math.min(Math.floor(item.score * BINS), BINS - 1)]++;
    all++;
    above += Boolean(state.verdict(item));
  }
  const highest = Math.max(1, ...normal.map((count, i) => count + anomalous[i])), room = HEIGHT - TOP - BOTTOM;
  const width = x(1 / BINS) - x(0);
  bars.replaceChildren();
  for (let i = 0; i < BINS; i++) {
    let bottom = HEIGHT - BOTTOM;
    for (const [kind, count] of [[limit === null ? "p" : "n", normal[i]], ["a", anomalous[i]]]) {
      if (!count) continue;
      const height = Math.max(1, (room * count) / highest);
      bottom -= height;
      const bar = draw("rect", { class: kind, x: x(i / BINS) + 0.5, y: bottom, width: width - 1, height });
      bar.append(draw("title", {}, `${count} from ${(i / BINS).toFixed(2)} to ${((i + 1) / BINS).toFixed(2)}`));
      bars.append(bar);
    }
  }
  const judged = limit === null ? "" : `; ${above} at or above the threshold`;
  bars.setAttribute("aria-label", `${all} scores from 0 to 1${judged}`);
  const at = limit ?? 0.5, text = handle.lastChild;
  handle.setAttribute("transform", `translate(${x(at)} 0)`);
  handle.setAttribute("aria-valuenow", at.toFixed(4));
  handle.setAttribute("aria-valuetext", limit === null ? "not set" : `${at.toFixed(4)}, ${above} of ${all} anomalous`);
  text.textContent = limit === null ? "drag to set a threshold" : `threshold ${at.toFixed(4)}`;
  text.setAttribute("text-anchor", at < 0.2 ? "start" : at > 0.8 ? "end" : "middle");
}
