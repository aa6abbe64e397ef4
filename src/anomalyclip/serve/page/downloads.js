// Everything that was found, as files: table, JSON lines, COCO, Label Studio, and a zip with pictures.
import { brushOf } from "./brush.js";
import { blobOf, drawMap, fitted } from "./drawing.js";
import { regionsOf, resized, runsOf } from "./maps.js";
import { mapOf, pictureOf } from "./scoring.js";
import { keyOf, state, titleOf } from "./state.js";
import { Zip } from "./zip.js";

const HEATMAP_SIDE = 2048;

const doneOf = (items) => items.filter((item) => item.status === "done").sort((a, b) => a.id - b.id);

// One picture as a line of predictions.jsonl, with the thresholds of the page, and marks.
export async function recordOf(item, map = null) {
  const { score, pixel } = state.thresholds;
  const regions = pixel === null ? [] : regionsOf(map ?? (await mapOf(item)), pixel, item.size);
  return {
    image_path: titleOf(item), pred_score: item.score, pred_label: state.verdict(item), threshold: score, pixel_threshold: pixel,
    image_size: item.size, ...(item.time === null ? {} : { time: item.time }), ...(item.nearest === null ? {} : { nearest: item.nearest }), regions: regions.map((region) => ({ ...region, mark: item.marks.get(keyOf(region)) ?? null })),
    mark: item.mark, model: state.model?.title ?? null,
  };
}

async function records(items, tell) {
  const found = [];
  for (const [i, item] of items.entries()) {
    tell(`${i + 1} of ${items.length}`);
    found.push(await recordOf(item));
  }
  return found;
}

const COLUMNS = ["image_path", "pred_score", "pred_label", "threshold", "pixel_threshold", "width", "height", "regions", "largest_region", "mark"];

export function csvOf(found) {
  // A spreadsheet takes what begins like this for a formula.
  const cell = (value) => {
    const text = value === null ? "" : value === true ? "True" : value === false ? "False" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `./${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const rows = found.map((one) => [
    one.image_path, one.pred_score, one.pred_label, one.threshold, one.pixel_threshold, ...one.image_size, one.regions.length,
    Math.max(0, ...one.regions.map((region) => region.area)), one.mark,
  ]);
  return [COLUMNS, ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

export const jsonlOf = (found) => found.map((one) => JSON.stringify(one) + "\n").join("");

// Findings that were marked wrong are no labels.
const kept = (record) => record.mark === "wrong" ? [] : record.regions.filter((region) => region.mark !== "wrong");

// The part of a mask inside a region's box, as runs of the whole image.
function segmentation(mask, region, [width, height]) {
  const [x0, y0, x1, y1] = region.box;
  const inside = (place) => {
    const x = place % width, y = (place - x) / width;
    return x >= x0 && x < x1 && y >= y0 && y < y1 && mask.values[place] >= mask.limit ? 1 : 0;
  };
  return { size: [height, width], counts: runsOf(inside, width, height) };
}

const MASK_PIXELS = 4e6; // of larger pictures there are boxes only

async function maskFor(item, record, regions) {
  const [width, height] = record.image_size;
  if (!regions.length || width * height > MASK_PIXELS) return null;
  return { values: resized(await mapOf(item), width, height).values, limit: Math.fround(record.pixel_threshold) };
}

export async function cocoOf(found, items) {
  const coco = {
    info: { description: "Regions found by AnomalyCLIP" }, categories: [{ id: 1, name: "anomaly" }], images: [], annotations: [],
  };
  for (const [i, record] of found.entries()) {
    const [width, height] = record.image_size, id = i + 1, regions = kept(record);
    coco.images.push({ id, file_name: record.image_path, width, height });
    const mask = await maskFor(items[i], record, regions);
    for (const region of regions) {
      const [x0, y0, x1, y1] = region.box;
      coco.annotations.push({
        id: coco.annotations.length + 1, image_id: id, category_id: 1, bbox: [x0, y0, x1 - x0, y1 - y0], area: region.area,
        iscrowd: mask ? 1 : 0, score: region.peak_score, segmentation: mask ? segmentation(mask, region, record.image_size) : [],
      });
    }
  }
  return JSON.stringify(coco);
}

export async function labelStudioOf(found, items) {
  const tasks = [];
  for (const [i, record] of found.entries()) {
    const [width, height] = record.image_size, regions = kept(record);
    const original = { to_name: "image", original_width: width, original_height: height, image_rotation: 0 };
    const result = regions.map((region, number) => {
      const [x0, y0, x1, y1] = region.box, percent = (value, whole) => (100 * value) / whole;
      const value = { x: percent(x0, width), y: percent(y0, height), width: percent(x1 - x0, width), height: percent(y1 - y0, height) };
      return { id: `region-${number + 1}`, type: "rectanglelabels", from_name: "label", ...original, score: region.peak_score, value: { ...value, rotation: 0, rectanglelabels: ["anomaly"] } };
    });
    const mask = await maskFor(items[i], record, regions);
    if (mask) {
      const inBoxes = regions.length === record.regions.length ? () => true : (x, y) => regions.some(({ box: [x0, y0, x1, y1] }) => x >= x0 && x < x1 && y >= y0 && y < y1);
      const inside = (place) => (mask.values[place] >= mask.limit && inBoxes(place % width, Math.floor(place / width)) ? 1 : 0);
      const rle = brushOf(inside, width * height);
      result.push({ id: "mask", type: "brushlabels", from_name: "brush", ...original, value: { format: "rle", rle, brushlabels: ["anomaly"] } });
    }
    const prediction = { model_version: record.model ?? "anomalyclip", score: record.pred_score, result };
    tasks.push({ data: { image: record.image_path, score: record.pred_score, mark: record.mark }, predictions: [prediction] });
  }
  return JSON.stringify(tasks);
}

async function heatMap(item, map) {
  const picture = await createImageBitmap(await pictureOf(item), { imageOrientation: "from-image" });
  const size = Math.max(...item.size) <= HEATMAP_SIDE ? item.size : fitted(item.size, HEATMAP_SIDE);
  const canvas = new OffscreenCanvas(...size), context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, ...size);
  picture.close();
  drawMap(context, map, state.thresholds.pixel, { alpha: state.alpha });
  return blobOf(canvas);
}

async function maskOf(item, map) {
  const full = resized(map, ...item.size), canvas = new OffscreenCanvas(...item.size), limit = Math.fround(state.thresholds.pixel);
  const pixels = new ImageData(...item.size), out = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < out.length; i++) out[i] = full.values[i] >= limit ? 0xffffffff : 0xff000000;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return blobOf(canvas);
}

// The name of a picture's files: it stays inside its folder, and no two pictures share one.
function nameIn(taken, title) {
  const parts = title.replaceAll("\\", "/").split("/").filter((part) => part && part !== ".").map((part) => (part === ".." ? "_" : part.replace(/[\u0000-\u001f:*?"<>|]/g, "_")));
  const whole = parts.join("/") || "_", plain = whole.replace(/\.[A-Za-z0-9]{1,5}(?=(#\d+)?$)/, "");
  let name = taken.has(plain.toLowerCase()) ? whole : plain;
  for (let number = 2; taken.has(name.toLowerCase()); number++) name = `${whole}~${number}`;
  taken.add(name.toLowerCase());
  return name;
}

async function zipOf(items, tell) {
  const zip = new Zip(), found = [], taken = new Set();
  for (const [i, item] of items.entries()) {
    tell(`${i + 1} of ${items.length}`);
    const map = await mapOf(item), name = nameIn(taken, titleOf(item)), files = {};
    files.heatmap = `heatmaps/${name}_heatmap.png`;
    await zip.add(files.heatmap, await heatMap(item, map));
    if (state.thresholds.pixel !== null) {
      files.mask = `masks/${name}_mask.png`;
      await zip.add(files.mask, await maskOf(item, map));
    }
    found.push({ ...(await recordOf(item, map)), files });
  }
  await zip.add("predictions.jsonl", jsonlOf(found));
  await zip.add("predictions.csv", csvOf(found));
  await zip.add("coco.json", await cocoOf(found, items));
  await zip.add("label_studio.json", await labelStudioOf(found, items));
  return zip.blob();
}

const MADE = {
  csv: ["predictions.csv", "text/csv", async (items, tell) => csvOf(await records(items, tell))],
  jsonl: ["predictions.jsonl", "application/x-ndjson", async (items, tell) => jsonlOf(await records(items, tell))],
  coco: ["coco.json", "application/json", async (items, tell) => cocoOf(await records(items, tell), items)],
  labelstudio: ["label_studio.json", "application/json", async (items, tell) => labelStudioOf(await records(items, tell), items)],
  zip: ["anomalyclip.zip", "application/zip", zipOf],
};

// Make a file and have the browser save it; `tell` is called with how far it is. `filtered`: only of what the filters show.
export async function download(kind, tell, { filtered = false } = {}) {
  const [name, type, content] = MADE[kind];
  // Chosen once: filters may change and pictures be scored while the file is made.
  const made = await content(doneOf(filtered ? state.view : state.items), tell);
  const url = URL.createObjectURL(made instanceof Blob ? made : new Blob([made], { type }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  return name;
}
