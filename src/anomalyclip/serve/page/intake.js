// Files from a drop, a file dialog or the clipboard.

const ENDINGS = new Set(
  ("jpg jpeg jpe jfif png apng bmp dib gif webp tif tiff ppm pgm pnm pbm dcm dicom gz nii mp4 m4v mov avi mkv webm mpg mpeg " +
    "wmv zip tar tgz avif heic heif jp2 j2k exr").split(" "),
);
const SINGLE = /\.(jpe?g|jpe|jfif|bmp|webp)$/i;

// Whether a file of a folder may hold images; files that are dropped one by one are all sent.
export function mayHoldImages(name) {
  const base = name.split("/").pop(), ending = /\.([^.]+)$/.exec(base);
  if (base.startsWith(".")) return false;
  return !ending || /^\d+$/.test(ending[1]) || ENDINGS.has(ending[1].toLowerCase());
}

// Whether a browser shows a file as the service sees it, and whether it certainly holds one image only.
export async function kindOf(file, name) {
  if (SINGLE.test(name)) return { shown: true, single: true };
  if (!/\.png$/i.test(name)) return { shown: false, single: false };
  const head = new DataView(await file.slice(0, 33).arrayBuffer());
  return { shown: head.byteLength > 24 && head.getUint8(24) <= 8, single: true };
}

// The files of a drop, folders included, as [{file, name}]; `skipped` counts what holds no images.
export async function filesOfDrop(transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = [];
  let skipped = 0;
  const walk = async (entry, path, chosen) => {
    if (entry instanceof File) {
      found.push({ file: entry, name: entry.name });
    } else if (entry.isFile) {
      if (!chosen && !mayHoldImages(entry.name)) skipped++;
      else found.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), name: path + entry.name });
    } else if (entry.isDirectory && !entry.name.startsWith(".")) {
      const reader = entry.createReader();
      for (;;) {
        const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!part.length) break;
        for (const inner of part) await walk(inner, `${path}${entry.name}/`, false);
      }
    }
  };
  for (const entry of entries) if (entry) await walk(entry, "", true);
  return { found, skipped };
}

// The files that were chosen in a dialog, of a folder or one by one.
export function filesOfInput(input) {
  const all = [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
  const found = input.webkitdirectory ? all.filter(({ name }) => name.split("/").every((part) => !part.startsWith(".")) && mayHoldImages(name)) : all;
  return { found, skipped: all.length - found.length };
}
