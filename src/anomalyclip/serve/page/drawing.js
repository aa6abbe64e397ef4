// Pictures of images and maps on canvases.
import { colorsOf, levelOf, opacitiesOf } from "./colors.js";
import { contourOf, resized } from "./maps.js";

const palettes = new Map();

function palette(marked, alpha) {
  const key = `${marked} ${alpha}`;
  if (!palettes.has(key)) {
    if (palettes.size > 20) palettes.clear();
    const opacities = opacitiesOf(marked, alpha);
    // One number for each level: alpha, blue, green, red, as little-endian canvases hold them.
    palettes.set(key, Uint32Array.from(colorsOf(marked), ([r, g, b], level) =>
      (opacities[level] << 24) | (b << 16) | (g << 8) | r));
  }
  return palettes.get(key);
}

// The size of an image that fits into a box; never larger than the image, unless the image is tiny.
export function fitted([width, height], longest) {
  const share = longest / Math.max(width, height);
  return [Math.max(1, Math.round(width * share)), Math.max(1, Math.round(height * share))];
}

// Draw the colours of a map, and its contour, over the whole of a canvas, which keeps what is below where the map is low.
export function drawMap(context, map, threshold, { alpha = 0.7, contour = true } = {}) {
  const { width, height } = context.canvas;
  const full = resized(map, width, height), colors = palette(threshold !== null, alpha);
  const layer = new OffscreenCanvas(width, height), pixels = new ImageData(width, height);
  const out = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < out.length; i++) out[i] = colors[levelOf(full.values[i], threshold)];
  layer.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(layer, 0, 0);
  if (contour && threshold !== null) drawContour(context, full, threshold);
}

function drawContour(context, map, threshold) {
  const lines = contourOf(map, Math.fround(threshold));
  if (!lines.length) return;
  const path = new Path2D(), mean = Math.sqrt(map.width * map.height);
  for (let i = 0; i < lines.length; i += 4) {
    path.moveTo(lines[i] + 0.5, lines[i + 1] + 0.5);
    path.lineTo(lines[i + 2] + 0.5, lines[i + 3] + 0.5);
  }
  context.lineCap = "round";
  for (const [width, color] of [[0.0075, "rgba(0, 0, 0, 0.55)"], [0.004, "#fff"]]) {
    context.lineWidth = Math.max(width * mean, 1);
    context.strokeStyle = color;
    context.stroke(path);
  }
}

// Draw boxes given in pixels of an image of this size; one of them may be chosen.
export function drawBoxes(context, regions, [width, height], chosen) {
  const [x, y] = [context.canvas.width / width, context.canvas.height / height];
  const line = Math.max(1.5, 0.003 * Math.sqrt(context.canvas.width * context.canvas.height));
  regions.forEach((region, index) => {
    const [x0, y0, x1, y1] = region.box, rectangle = [x0 * x, y0 * y, (x1 - x0) * x, (y1 - y0) * y];
    context.lineWidth = 2.5 * line;
    context.strokeStyle = "rgba(0, 0, 0, 0.7)";
    context.strokeRect(...rectangle);
    context.lineWidth = index === chosen ? 1.6 * line : line;
    context.strokeStyle = index === chosen ? "#5cc8ff" : "#fff";
    context.strokeRect(...rectangle);
  });
}

// Draw an image into a square canvas, around a box given as shares of it, and mark the box.
export function drawPlace(canvas, image, [left, top, right, bottom]) {
  const side = Math.min(image.width, image.height, 4 * Math.max((right - left) * image.width, (bottom - top) * image.height));
  const start = (low, high, length) => Math.min(Math.max(((low + high) / 2) * length - side / 2, 0), length - side);
  const [x, y] = [start(left, right, image.width), start(top, bottom, image.height)];
  const context = canvas.getContext("2d"), scale = canvas.width / side;
  context.imageSmoothingQuality = "high";
  context.drawImage(image, x, y, side, side, 0, 0, canvas.width, canvas.height);
  const box = [scale * (left * image.width - x), scale * (top * image.height - y), scale * (right - left) * image.width, scale * (bottom - top) * image.height];
  for (const [width, color] of [[4, "rgba(0, 0, 0, 0.7)"], [2, "#fff"]]) {
    context.lineWidth = width;
    context.strokeStyle = color;
    context.strokeRect(...box);
  }
}

export function blobOf(canvas, type = "image/png", quality) {
  if (canvas.convertToBlob) return canvas.convertToBlob({ type, quality });
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("this picture is too large for the browser"))), type, quality));
}
