// Thumbnails: made when a picture is about to be seen, a few at a time, and kept as small files.
import { blobOf, drawMap, fitted } from "./drawing.js";
import { pictureOf } from "./scoring.js";
import { state } from "./state.js";

export const SIDE = 256;
const AT_ONCE = 3;
const wanted = [];
let running = 0;

// Draw a picture's thumbnail with its overlay on a canvas; `isWanted` tells whether it is still to be seen.
export function drawThumbnail(item, canvas, isWanted) {
  if (item.thumbnail) {
    paint(item, canvas, isWanted);
    return;
  }
  wanted.push({ item, canvas, isWanted });
  next();
}

async function next() {
  while (running < AT_ONCE && wanted.length) {
    const { item, canvas, isWanted } = wanted.pop(); // the last is where the person looks now
    if (!isWanted()) continue;
    running++;
    make(item).then(() => paint(item, canvas, isWanted)).catch(() => canvas.parentElement?.classList.add("nothing")).finally(() => {
      running--;
      next();
    });
  }
}

async function make(item) {
  if (item.thumbnail) return;
  const picture = await pictureOf(item);
  const full = await createImageBitmap(picture, { imageOrientation: "from-image" });
  const [width, height] = fitted([full.width, full.height], SIDE);
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(full, 0, 0, width, height);
  full.close();
  item.thumbnail = await blobOf(canvas, "image/jpeg", 0.85);
}

async function paint(item, canvas, isWanted) {
  const photograph = await createImageBitmap(item.thumbnail);
  if (!isWanted()) return;
  canvas.width = photograph.width;
  canvas.height = photograph.height;
  const context = canvas.getContext("2d");
  context.drawImage(photograph, 0, 0);
  photograph.close();
  if (item.small && !document.documentElement.classList.contains("photos")) {
    drawMap(context, item.small, state.thresholds.pixel, { alpha: state.alpha });
  }
  canvas.parentElement?.classList.remove("nothing");
  canvas.classList.add("drawn");
}
