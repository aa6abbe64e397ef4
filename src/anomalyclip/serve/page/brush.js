// Masks as Label Studio's brush draws them: runs of RGBA values in a stream of bits (the form of rle-pack).
const SIZES = [3, 4, 8, 16], VALUE = 8, CHANNELS = 4;

// The bytes of a mask of so many pixels; `inside` tells of each, row by row, whether it is drawn: 1 or 0.
export function brushOf(inside, pixels) {
  const bytes = [];
  let rest = 0, filled = 0;
  const put = (value, bits) => {
    for (let bit = bits - 1; bit >= 0; bit--) {
      rest = (rest << 1) | ((value >>> bit) & 1);
      if (++filled === 8) {
        bytes.push(rest);
        rest = filled = 0;
      }
    }
  };
  put(pixels * CHANNELS, 32);
  put(VALUE - 1, 5);
  for (const size of SIZES) put(size - 1, 4);
  for (let start = 0; start < pixels; ) {
    const value = inside(start);
    let end = start + 1;
    while (end < pixels && inside(end) === value) end++;
    for (let length = (end - start) * CHANNELS; length; ) {
      const part = Math.min(length, 1 << SIZES[3]), index = SIZES.findIndex((size) => part <= 1 << size);
      put(1, 1);
      put(index, 2);
      put(part - 1, SIZES[index]);
      put(value ? 255 : 0, VALUE);
      length -= part;
    }
    start = end;
  }
  if (filled) put(0, 8 - filled);
  return bytes;
}
