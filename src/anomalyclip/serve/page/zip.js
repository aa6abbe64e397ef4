// Zip archives without compression: their members are pictures, which are compressed already.

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

export function crc32(bytes) {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = TABLE[(crc ^ bytes[i]) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

const MOST_FILES = 0xffff, MOST_BYTES = 0xffffffff;

export class Zip {
  constructor(date = new Date()) {
    this.parts = [];
    this.directory = [];
    this.offset = 0;
    this.names = new Set();
    this.time = (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);
    this.day = (Math.max(date.getFullYear() - 1980, 0) << 9) | ((date.getMonth() + 1) << 5) | date.getDate();
  }

  // Add a file; content is text or a Blob.
  async add(name, content) {
    const blob = content instanceof Blob ? content : new Blob([content]);
    const encoded = new TextEncoder().encode(name);
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    if (this.directory.length === MOST_FILES || this.offset + blob.size + encoded.length + 64 > MOST_BYTES) {
      throw new Error("a zip file holds at most 4 GB and 65,535 files: download fewer pictures at once");
    }
    const common = [20, 0x0800, 0, this.time, this.day];
    const local = header(30, 0x04034b50, common, [crc, blob.size, blob.size], [encoded.length, 0]);
    const central = new DataView(new ArrayBuffer(46));
    central.setUint32(0, 0x02014b50, true);
    central.setUint16(4, 0x0314, true);
    common.forEach((value, i) => central.setUint16(6 + 2 * i, value, true));
    [crc, blob.size, blob.size].forEach((value, i) => central.setUint32(16 + 4 * i, value, true));
    central.setUint16(28, encoded.length, true);
    central.setUint32(38, (0o100644 << 16) >>> 0, true);
    central.setUint32(42, this.offset, true);
    this.directory.push(central.buffer, encoded);
    this.parts.push(local, encoded, blob);
    this.offset += local.byteLength + encoded.length + blob.size;
  }

  blob() {
    const directory = new Blob(this.directory), end = new DataView(new ArrayBuffer(22));
    end.setUint32(0, 0x06054b50, true);
    end.setUint16(8, this.directory.length / 2, true);
    end.setUint16(10, this.directory.length / 2, true);
    end.setUint32(12, directory.size, true);
    end.setUint32(16, this.offset, true);
    return new Blob([...this.parts, directory, end.buffer], { type: "application/zip" });
  }
}

function header(size, mark, shorts, longs, lengths) {
  const view = new DataView(new ArrayBuffer(size));
  view.setUint32(0, mark, true);
  let at = 4;
  for (const value of shorts) { view.setUint16(at, value, true); at += 2; }
  for (const value of longs) { view.setUint32(at, value, true); at += 4; }
  for (const value of lengths) { view.setUint16(at, value, true); at += 2; }
  return view.buffer;
}
