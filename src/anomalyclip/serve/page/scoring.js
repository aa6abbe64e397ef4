// Sends pictures to the service in small batches, a few at a time, and takes what comes back.
import { kindOf } from "./intake.js";
import { decodeBase64, readNpy, resized } from "./maps.js";
import { askModel } from "./recipes.js";
import { fitted } from "./drawing.js";
import { state } from "./state.js";

const FILES = 4, BYTES = 16e6, REQUESTS = 2;
const SMALL = 64;
const KEPT_BYTES = 1.2e9;
let running = 0, kept = 0;
let stopper = new AbortController();

// Score everything that waits; call it again whenever there is more.
export function scoreWaiting() {
  while (running < REQUESTS && state.items.some((item) => item.status === "waiting")) {
    running++;
    oneBatch(stopper.signal).finally(() => {
      running--;
      scoreWaiting();
    });
  }
}

// Score all pictures again, with another model.
export function scoreAgain() {
  stopper.abort();
  stopper = new AbortController();
  const firsts = new Set();
  state.items = state.items.filter((item) => {
    const again = !firsts.has(item.source);
    firsts.add(item.source);
    if (again) Object.assign(item, { status: "waiting", error: null, score: null, index: 1 });
    drop(item);
    return again;
  });
  state.changed("items");
  scoreWaiting();
}

function drop(item) {
  if (item.map) kept -= item.map.size;
  item.map = item.small = null;
}

// Try again what failed, for example without the key.
export function retryFailed() {
  for (const item of state.items) if (item.status === "failed") Object.assign(item, { status: "waiting", error: null });
  state.changed("items");
  scoreWaiting();
}

export function forget(items) {
  items.forEach(drop);
  state.remove(items);
}

async function oneBatch(signal) {
  const batch = [];
  let bytes = 0, preview = false;
  for (const item of state.items) {
    if (item.status !== "waiting") continue;
    item.kind ??= await kindOf(item.file, item.name).catch(() => ({ shown: false, single: false }));
    if (item.status !== "waiting" || signal.aborted) continue; // somebody else was faster
    if (batch.length && (!item.kind.single || preview || !item.kind.shown || bytes + item.file.size > BYTES)) break;
    item.status = "asking";
    batch.push(item);
    bytes += item.file.size;
    preview = !item.kind.shown;
    if (!item.kind.single || batch.length === FILES) break;
  }
  if (batch.length) await send(batch, preview, signal);
}

async function send(batch, preview, signal) {
  try {
    const answer = await askModel("/v1/predict", (model) => formOf(batch, preview, model), { signal });
    if (signal.aborted) return;
    take(batch, answer.predictions, answer.model);
  } catch (error) {
    if (signal.aborted) return;
    if (batch.length > 1) {
      for (const item of batch) await send([item], preview, signal);
      return;
    }
    Object.assign(batch[0], { status: "failed", error: error.message });
  }
  state.changed("scores");
}

function formOf(items, preview, model) {
  const form = new FormData();
  for (const item of items) form.append("files", item.file, item.name.split("/").pop());
  if (model) form.append("model", model);
  form.append("map", "npy");
  form.append("map_size", "0"); // as the model made it: regions are found there
  if (preview) form.append("preview", "1");
  return form;
}

function take(batch, predictions, model) {
  if (batch.length > 1 && predictions.length !== batch.length) throw new Error("the service sent another number of answers");
  if (batch.length > 1) {
    batch.forEach((item, i) => fill(item, predictions[i], model));
    return;
  }
  const [first, ...others] = predictions, [item] = batch;
  const numbered = others.length > 0 && others.every((one) => one.name === first.name);
  const more = state.insertAfter(item, others.map(() => ({ file: item.file, source: item.source, kind: item.kind, name: item.name, status: "asking" })));
  [item, ...more].forEach((one, i) => {
    one.numbered = numbered;
    if (others.length && !numbered) one.name = predictions[i].name;
    fill(one, predictions[i], model);
  });
}

function fill(item, prediction, model) {
  item.index = prediction.index;
  item.time = prediction.time ?? null;
  item.modelId = model;
  if (prediction.error) {
    Object.assign(item, { status: "failed", error: prediction.error });
    return;
  }
  Object.assign(item, { status: "done", score: prediction.pred_score, size: prediction.image_size, nearest: prediction.nearest ?? null });
  if (prediction.preview) item.preview = new Blob([decodeBase64(prediction.preview.data)], { type: "image/jpeg" });
  keep(item, prediction.map);
}

function keep(item, sent) {
  const bytes = decodeBase64(sent.data), map = readNpy(bytes.buffer);
  const small = resized(map, ...fitted(item.size, SMALL));
  item.small = small;
  if (kept + bytes.length <= KEPT_BYTES) {
    item.map = new Blob([bytes]); // the browser may move it to disk
    kept += bytes.length;
  }
  return map;
}

// The map of a picture; if it is not kept any more, the service is asked again.
export async function mapOf(item) {
  if (item.map) return readNpy(await item.map.arrayBuffer());
  const prediction = await again(item, false);
  return keep(item, prediction.map);
}

// What a browser can show of a picture.
export async function pictureOf(item) {
  if (item.preview) return item.preview;
  if (item.kind.shown && !item.numbered) return item.file;
  const prediction = await again(item, true);
  item.preview = new Blob([decodeBase64(prediction.preview.data)], { type: "image/jpeg" });
  return item.preview;
}

async function again(item, preview) {
  const answer = await askModel("/v1/predict", (model) => formOf([item], preview, model));
  const found = answer.predictions.find((one) => one.index === item.index && !one.error && (item.numbered || answer.predictions.length === 1 || one.name === item.name));
  if (!found) throw new Error(`${item.name}: the service does not have this picture any more`);
  return found;
}
