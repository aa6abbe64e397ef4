// Anomaly maps: reading them, enlarging them, and the regions above a threshold, by the rules of anomalyclip.prediction.

// Return {width, height, values} of a NumPy file with float32 values.
export function readNpy(buffer) {
  const bytes = new DataView(buffer);
  const long = bytes.getUint8(6) > 1;
  const start = (long ? 12 : 10) + (long ? bytes.getUint32(8, true) : bytes.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, long ? 12 : 10, start - (long ? 12 : 10)));
  const shape = /'shape': \((\d+), (\d+)\)/.exec(header);
  if (!shape || !header.includes("'<f4'")) throw new Error("the service sent a map in an unknown form");
  const [height, width] = [Number(shape[1]), Number(shape[2])];
  return { width, height, values: new Float32Array(buffer.slice(start, start + 4 * width * height)) };
}

export function decodeBase64(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// For each place of an enlarged or shrunk line: where its window starts, and the weights in it (a triangle, as Pillow's).
function windows(from, to) {
  const scale = from / to, support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = [];
    let sum = 0;
    for (let i = start; i < end; i++) {
      const weight = Math.max(0, 1 - Math.abs((i - centre + 0.5) / support));
      weights.push(weight);
      sum += weight;
    }
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}

// The map at another size: bilinear, and averaged where it shrinks.
export function resized(map, width, height) {
  if (map.width === width && map.height === height) return map;
  const across = windows(map.width, width), down = windows(map.height, height);
  const rows = new Float32Array(width * map.height);
  for (let y = 0; y < map.height; y++) {
    const line = y * map.width;
    for (let x = 0; x < width; x++) {
      const { start, weights } = across[x];
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += map.values[line + start + i] * weights[i];
      rows[y * width + x] = sum;
    }
  }
  const values = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const { start, weights } = down[y];
    for (let i = 0; i < weights.length; i++) {
      const line = (start + i) * width, weight = weights[i];
      for (let x = 0; x < width; x++) values[y * width + x] += rows[line + x] * weight;
    }
  }
  return { width, height, values };
}

// The 8-connected regions at or above a threshold, highest peak first, in pixels of an image of this size.
export function regionsOf(map, threshold, [imageWidth, imageHeight]) {
  if (threshold === null) return [];
  const { width, height, values } = map, limit = Math.fround(threshold);
  const seen = new Uint8Array(values.length), regions = [];
  const waiting = new Int32Array(values.length);
  for (let first = 0; first < values.length; first++) {
    if (seen[first] || !(values[first] >= limit)) continue;
    let count = 1, done = 0, peak = first;
    let [left, right, top, bottom] = [width, -1, height, -1];
    waiting[0] = first;
    seen[first] = 1;
    while (done < count) {
      const place = waiting[done++], x = place % width, y = (place - x) / width;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      if (y > bottom) bottom = y;
      if (values[place] > values[peak] || (values[place] === values[peak] && place < peak)) peak = place;
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const other = v * width + u;
          if (!seen[other] && values[other] >= limit) {
            seen[other] = 1;
            waiting[count++] = other;
          }
        }
      }
    }
    const peakX = peak % width, peakY = (peak - peakX) / width;
    regions.push({
      box: [
        Math.floor((left * imageWidth) / width),
        Math.floor((top * imageHeight) / height),
        Math.ceil(((right + 1) * imageWidth) / width),
        Math.ceil(((bottom + 1) * imageHeight) / height),
      ],
      area: Math.max(1, halfToEven((count * imageWidth * imageHeight) / values.length)),
      peak_score: values[peak],
      peak_position: [
        Math.floor(((2 * peakX + 1) * imageWidth) / (2 * width)),
        Math.floor(((2 * peakY + 1) * imageHeight) / (2 * height)),
      ],
    });
  }
  return regions.sort((a, b) => b.peak_score - a.peak_score || b.area - a.area || compare(a.box, b.box));
}

// Python's rounding.
export function halfToEven(value) {
  const below = Math.floor(value), rest = value - below;
  return rest === 0.5 ? below + (below % 2) : Math.round(value);
}

function compare(a, b) {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return 0;
}

// The edge of the mask as short lines, [x0, y0, x1, y1, ...] in pixels of the map: marching squares.
export function contourOf({ width, height, values }, threshold) {
  const lines = [], at = (x, y) => values[y * width + x] - threshold;
  for (let y = 0; y < height - 1; y++) {
    for (let x = 0; x < width - 1; x++) {
      const a = at(x, y), b = at(x + 1, y), c = at(x + 1, y + 1), d = at(x, y + 1);
      const kind = (a >= 0 ? 1 : 0) | (b >= 0 ? 2 : 0) | (c >= 0 ? 4 : 0) | (d >= 0 ? 8 : 0);
      if (kind === 0 || kind === 15) continue;
      const crossing = [
        () => [x + a / (a - b), y], () => [x + 1, y + b / (b - c)],
        () => [x + d / (d - c), y + 1], () => [x, y + a / (a - d)],
      ];
      for (const [from, to] of EDGES[kind]) lines.push(...crossing[from](), ...crossing[to]());
    }
  }
  return lines;
}

// Sides that a line crosses (0 top, 1 right, 2 bottom, 3 left), by which corners are inside.
const EDGES = [
  [], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]],
  [[2, 3]], [[2, 0]], [[0, 1], [2, 3]], [[2, 1]], [[1, 3]], [[1, 0]], [[0, 3]], [],
];

// Runs of a mask, column by column, beginning with normal pixels (COCO).
export function runsOf(inside, width, height) {
  const runs = [];
  let value = 0, length = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if (inside(y * width + x) !== value) {
        runs.push(length);
        value = 1 - value;
        length = 0;
      }
      length++;
    }
  }
  runs.push(length);
  return runs;
}
