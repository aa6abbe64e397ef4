// Map values to colours: the same as anomalyclip.visualize.colors draws.
import { halfToEven } from "./maps.js";

const INFERNO = [
  [0, 0, 4], [33, 12, 74], [87, 16, 110], [138, 34, 106], [188, 55, 84],
  [228, 90, 49], [249, 142, 9], [249, 203, 53], [252, 255, 164],
];
const OPACITY_FROM = 0.1, OPACITY_TO = 0.7;
const FAINTEST = 0.45, FAINTEST_COLOR = 0.3;

// Colour of each of 256 levels, as [red, green, blue]. With a threshold ("marked") the scale starts higher than black.
export function colorsOf(marked) {
  const first = marked ? FAINTEST_COLOR * (INFERNO.length - 1) : 0;
  return Array.from({ length: 256 }, (_, level) => {
    const position = first + (level / 255) * (INFERNO.length - 1 - first);
    const below = Math.min(Math.floor(position), INFERNO.length - 2), share = position - below;
    return INFERNO[below].map((low, channel) => halfToEven(low + share * (INFERNO[below + 1][channel] - low)));
  });
}

// Opacity of each of 256 levels, 0 to 255.
export function opacitiesOf(marked, alpha) {
  return Array.from({ length: 256 }, (_, level) => {
    const share = level / 255;
    if (marked && level === 0) return 0;
    const covered = marked
      ? FAINTEST + ((1 - FAINTEST) * share) / OPACITY_TO
      : (share - OPACITY_FROM) / (OPACITY_TO - OPACITY_FROM);
    return halfToEven(255 * alpha * Math.min(Math.max(covered, 0), 1));
  });
}

// Level of a value, 0 to 255: with a threshold 0 is below it, and the scale starts there.
export function levelOf(value, threshold) {
  if (threshold === null) return Math.round(255 * Math.min(Math.max(value, 0), 1));
  if (value < threshold) return 0;
  return Math.max(1, Math.round((255 * (value - threshold)) / Math.max(1 - threshold, 1e-9)));
}
