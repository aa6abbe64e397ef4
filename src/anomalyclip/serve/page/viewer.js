// One picture, large: the map over it, its regions, and marks.
import { $, atNextFrame, make, many, printable, say } from "./dom.js";
import { drawBoxes, drawMap, drawPlace, fitted } from "./drawing.js";
import { labelOf } from "./labels.js";
import { regionsOf, resized } from "./maps.js";
import { referenceOf } from "./models.js";
import { mapOf, pictureOf } from "./scoring.js";
import { keyOf, shown, state, titleOf } from "./state.js";

const dialog = $("viewer"), stage = $("stage"), picture = $("picture");
const JUDGED = ["judgement", "sliders", "regions-title", "regions"]; // what a picture without a score does not have
const LONGEST = 1600, SHARPEST = 4096;
let item = null, map = null, full = null, bitmap = null, regions = [], chosen = -1;
let at = 0, sharp = false, zoom = 1, offset = [0, 0], bare = false, closed = () => {};

export const openItem = () => (dialog.open ? item : null);

export function buildViewer(onClose) {
  closed = onClose;
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => { const was = item; forgetPicture(); item = null; closed(was); });
  $("previous").addEventListener("click", () => go(-1));
  $("next").addEventListener("click", () => go(1));
  $("mark-right").addEventListener("click", () => mark("right"));
  $("mark-wrong").addEventListener("click", () => mark("wrong"));
  $("compare").addEventListener("input", showCurtain);
  $("opacity").addEventListener("input", ({ target }) => { state.alpha = target.value / 100; state.changed("alpha"); });
  $("pixel").addEventListener("input", ({ target }) => state.setThreshold("pixel", Number(target.value)));
  $("curtain").addEventListener("pointerdown", dragCurtain);
  stage.addEventListener("wheel", (event) => { event.preventDefault(); zoomAt(zoom * Math.exp(-event.deltaY / 400), event); }, { passive: false });
  stage.addEventListener("dblclick", (event) => zoomAt(zoom > 1 ? 1 : 3, event));
  stage.addEventListener("pointerdown", pan);
  new ResizeObserver(atNextFrame(layOut)).observe(stage);
}

export async function openViewer(which) {
  item = which;
  chosen = -1;
  sharp = false;
  zoom = 1;
  offset = [0, 0];
  forgetPicture();
  if (!dialog.open) {
    dialog.showModal();
    $("viewer-title").focus();
  }
  showItem();
  message("loading …");
  try {
    const [blob, found] = await Promise.all([pictureOf(which), which.status === "done" ? mapOf(which) : null]);
    const decoded = await createImageBitmap(blob, { imageOrientation: "from-image", ...bounded(which) });
    if (item !== which) return decoded.close();
    [bitmap, map] = [decoded, found];
    message(failureOf(which));
  } catch (error) {
    if (item === which) message(failureOf(which) ?? `This picture cannot be shown: ${error.message}`);
  }
  if (item === which) {
    layOut();
    showRegions();
    showNearest(which);
  }
}

const failureOf = (which) => (which.status === "failed" ? `This picture has no score: ${which.error}` : null);

// A picture is decoded no larger than it can be looked at.
function bounded(item) {
  if (!item.size || Math.max(...item.size) <= SHARPEST) return {};
  const [resizeWidth, resizeHeight] = fitted(item.size, SHARPEST);
  return { resizeWidth, resizeHeight, resizeQuality: "high" };
}

function forgetPicture() {
  bitmap?.close();
  bitmap = map = full = null;
  regions = [];
  for (const canvas of picture.querySelectorAll("canvas")) canvas.width = canvas.height = 0;
}

function message(text) {
  $("viewer-message").hidden = !text;
  $("viewer-message").textContent = text ? printable(text) : "";
  $("viewer-message").classList.toggle("failed", Boolean(item?.error));
}

export function showItem() {
  if (!item) return;
  const view = state.view, found = view.indexOf(item), verdict = state.verdict(item), title = printable(titleOf(item));
  const [where, name] = [title.slice(0, title.lastIndexOf("/") + 1), title.slice(title.lastIndexOf("/") + 1)];
  $("viewer-title").textContent = name;
  if (found >= 0) at = found;
  $("viewer-where").textContent = [found >= 0 ? `${at + 1} of ${view.length}` : "", where].filter(Boolean).join(" · ");
  $("viewer-score").textContent = item.score === null ? "" : shown(item.score);
  $("viewer-verdict").textContent = item.status === "failed" ? "failed" : verdict === null ? "no threshold" : verdict ? "anomalous" : "normal";
  $("viewer-verdict").className = verdict || item.status === "failed" ? "bad" : verdict === null ? "soft" : "good";
  $("previous").disabled = !neighbour(-1);
  $("next").disabled = !neighbour(1);
  for (const id of JUDGED) $(id).hidden = item.status === "failed";
  $("mark-right").setAttribute("aria-pressed", item.mark === "right");
  $("mark-wrong").setAttribute("aria-pressed", item.mark === "wrong");
  $("photograph").setAttribute("aria-label", `${title}${item.score === null ? "" : `, score ${shown(item.score)}`}`);
  $("opacity").value = Math.round(100 * state.alpha);
  $("opacity-says").value = `${Math.round(100 * state.alpha)} %`;
  const pixel = state.thresholds.pixel;
  $("pixel").value = pixel ?? 0.5;
  $("pixel-says").value = pixel === null ? "none" : shown(pixel);
  $("pixel").setAttribute("aria-valuetext", pixel === null ? "not set" : shown(pixel));
  const facts = [["Size", item.size ? `${item.size[0]} × ${item.size[1]}` : "–"], ["Score threshold", state.thresholds.score === null ? "none" : shown(state.thresholds.score)], ["Model", state.model ? labelOf(state.model) : "–"]];
  if (item.time !== null) facts.splice(1, 0, ["Time", `${item.time.toFixed(2)} s`]);
  $("facts").replaceChildren(...facts.flatMap(([term, text]) => [make("dt", { textContent: term }), make("dd", { textContent: printable(text) })]));
}

// The thresholds, marks or the opacity have changed.
export function refreshViewer() {
  if (!item) return;
  showItem();
  showRegions();
  paint();
}

function showRegions() {
  const pixel = state.thresholds.pixel;
  regions = map && pixel !== null ? regionsOf(map, pixel, item.size) : [];
  if (chosen >= regions.length) chosen = -1;
  $("regions-title").textContent = regions.length ? many(regions.length, "region") : "Regions";
  $("no-regions").hidden = regions.length > 0;
  $("no-regions").textContent = !map ? "" : pixel === null ? "Move the pixel threshold to find regions." : "No pixel is at or above the pixel threshold.";
  $("regions").replaceChildren(...regions.slice(0, 200).map(regionRow));
  paint();
}

function regionRow(region, index) {
  const key = keyOf(region), [x0, y0, x1, y1] = region.box, name = `region ${index + 1}`;
  const button = make("button", { type: "button", className: "region", "aria-pressed": index === chosen },
    make("span", { textContent: index + 1 }), make("b", { textContent: shown(region.peak_score) }),
    make("span", { textContent: `${x1 - x0} × ${y1 - y0} at ${x0}, ${y0} · ${region.area.toLocaleString("en")} px` }));
  button.addEventListener("click", () => choose(index));
  const marks = [["right", "✓"], ["wrong", "✗"]].map(([kind, sign]) => {
    const one = make("button", { type: "button", className: `round ${kind}`, textContent: sign, title: `${name} is ${kind}`, "aria-label": `${name} is ${kind}`, "aria-pressed": item.marks.get(key) === kind });
    one.addEventListener("click", () => markRegion(index, kind));
    return one;
  });
  return make("li", {}, button, ...marks);
}

// What the strangest place was compared with: it, and the place of a flawless picture that is most like it.
async function showNearest(which) {
  const { nearest } = which, file = nearest && bitmap ? referenceOf(nearest.reference) : null;
  $("nearest").hidden = !nearest || / in memory$/.test(nearest.reference); // it has no name
  $("nearest-pictures").hidden = true;
  if (!nearest) return;
  $("nearest-says").textContent = printable(`The strangest place is most like one in ${nearest.reference} (distance ${nearest.distance.toFixed(3)}).`);
  const reference = file && (await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null));
  if (!reference || item !== which) return;
  drawPlace($("nearest-own"), bitmap, nearest.box);
  drawPlace($("nearest-reference"), reference, nearest.reference_box);
  reference.close();
  $("nearest-pictures").hidden = false;
}

export function choose(index) {
  if (index >= regions.length) return;
  chosen = chosen === index ? -1 : index;
  [...$("regions").children].forEach((row, i) => row.firstChild.setAttribute("aria-pressed", i === chosen));
  paint();
}

export function mark(kind) {
  item.mark = item.mark === kind ? null : kind;
  say(item.mark ? `marked ${kind}` : "mark taken back");
  state.changed("marks");
}

export function markRegion(index, kind) {
  if (index < 0 || index >= regions.length) return;
  const key = keyOf(regions[index]);
  if (item.marks.get(key) === kind) item.marks.delete(key);
  else item.marks.set(key, kind);
  const inList = $("regions").contains(document.activeElement), label = document.activeElement?.getAttribute("aria-label");
  say(item.marks.has(key) ? `region ${index + 1} marked ${kind}` : "mark taken back");
  state.changed("marks");
  if (inList) [...$("regions").querySelectorAll("button")].find((button) => button.getAttribute("aria-label") === label)?.focus();
}

export const chosenRegion = () => chosen;

// The picture before or after; one that a mark or a threshold has just taken from the list still has its place.
function neighbour(step) {
  const view = state.view;
  return view.includes(item) ? view[at + step] : view[step > 0 ? at : at - 1];
}

export function go(step) {
  const next = neighbour(step);
  if (next) openViewer(next).then(() => say(`${titleOf(next)}, ${next.score === null ? "failed" : `score ${shown(next.score)}`}`));
}

// Fit the picture into the stage, in device pixels, and draw it.
function layOut() {
  if (!bitmap) return;
  const size = item.size ?? [bitmap.width, bitmap.height], { clientWidth, clientHeight } = stage;
  const share = Math.min(clientWidth / size[0], clientHeight / size[1]);
  const [width, height] = [size[0] * share, size[1] * share];
  picture.style.width = `${width}px`;
  picture.style.height = `${height}px`;
  const [w, h] = fitted(size, Math.min(LONGEST, Math.round(Math.max(width, height) * Math.min(devicePixelRatio, 2))));
  Object.assign($("map"), { width: w, height: h });
  showPhotograph(w, h);
  full = map && resized(map, w, h);
  showCurtain();
  paint();
  place();
}

function showPhotograph(width, height) {
  const canvas = $("photograph"), context = canvas.getContext("2d");
  Object.assign(canvas, sharp ? { width: bitmap.width, height: bitmap.height } : { width, height });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

const paint = atNextFrame(() => {
  const canvas = $("map"), context = canvas.getContext("2d");
  if (!canvas.width) return;
  context.clearRect(0, 0, canvas.width, canvas.height);
  canvas.hidden = bare;
  if (!full) return;
  drawMap(context, full, state.thresholds.pixel, { alpha: state.alpha });
  if (chosen >= 0) drawBoxes(context, regions, item.size, chosen);
});

export function toggleBare() {
  bare = !bare;
  paint();
  say(bare ? "picture without colours" : "map shown");
}

function showCurtain() {
  const share = Number($("compare").value);
  $("map").style.clipPath = `inset(0 0 0 ${share}%)`;
  $("curtain").style.left = `${share}%`;
  $("compare-says").value = share === 0 ? "map" : share === 100 ? "picture" : `${share} %`;
  $("curtain").hidden = !map;
}

function dragCurtain(event) {
  event.stopPropagation();
  event.preventDefault();
  const curtain = $("curtain");
  curtain.setPointerCapture(event.pointerId);
  const move = ({ clientX }) => {
    const box = picture.getBoundingClientRect();
    $("compare").value = Math.round((100 * (clientX - box.left)) / box.width);
    showCurtain();
  };
  curtain.addEventListener("pointermove", move);
  curtain.addEventListener("lostpointercapture", () => curtain.removeEventListener("pointermove", move), { once: true });
}

export function zoomAt(wanted, point = null) {
  const next = Math.min(Math.max(wanted, 1), 24), box = picture.getBoundingClientRect(), area = stage.getBoundingClientRect();
  const [x, y] = point ? [point.clientX - box.left, point.clientY - box.top] : [area.left + area.width / 2 - box.left, area.top + area.height / 2 - box.top];
  offset = next === 1 ? [0, 0] : [offset[0] + x - (x * next) / zoom, offset[1] + y - (y * next) / zoom];
  zoom = next;
  if (zoom > 1 && bitmap && !sharp && bitmap.width > $("map").width) {
    sharp = true;
    showPhotograph();
  }
  place();
}

export const zoomBy = (factor) => zoomAt(zoom * factor);

function place() {
  picture.style.transform = `translate(${offset[0]}px, ${offset[1]}px) scale(${zoom})`;
  stage.classList.toggle("zoomed", zoom > 1);
}

const fingers = new Map();

// One finger or the mouse moves a picture that is zoomed, or goes to the next one by a swipe; two fingers zoom.
function pan(event) {
  if (event.target.closest("button") || event.button) return;
  const start = [event.clientX, event.clientY], before = [...offset];
  fingers.set(event.pointerId, event);
  stage.setPointerCapture(event.pointerId);
  const move = (moved) => {
    if (moved.pointerId !== event.pointerId) return;
    if (fingers.size === 2) {
      const gap = (list) => Math.hypot(list[0].clientX - list[1].clientX, list[0].clientY - list[1].clientY);
      const was = gap([...fingers.values()]);
      fingers.set(moved.pointerId, moved);
      const [a, b] = fingers.values();
      zoomAt((zoom * gap([a, b])) / was, { clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 });
    } else if (zoom > 1) {
      offset = [before[0] + moved.clientX - start[0], before[1] + moved.clientY - start[1]];
      place();
    }
  };
  const end = (last) => {
    if (last.pointerId !== event.pointerId) return;
    const alone = fingers.size === 1, across = last.clientX - start[0];
    fingers.delete(event.pointerId);
    stage.removeEventListener("pointermove", move);
    stage.removeEventListener("lostpointercapture", end);
    if (alone && zoom === 1 && event.pointerType === "touch" && Math.abs(across) > 60) go(across < 0 ? 1 : -1);
  };
  stage.addEventListener("pointermove", move);
  stage.addEventListener("lostpointercapture", end);
}
