// What the page knows: pictures with their scores, the thresholds, and which of them are shown in which order.

export const state = new (class extends EventTarget {
  items = [];
  thresholds = { score: null, pixel: null };
  filter = { verdict: "", mark: "", find: "", order: "high" };
  alpha = 0.7;
  model = null;
  #next = 1;
  #view = null;

  add(entries) {
    for (const entry of entries) this.items.push(Object.assign({ id: this.#next++ }, EMPTY, { marks: new Map() }, entry));
    this.changed("items");
  }

  // A file that holds several images: the others come right after the first.
  insertAfter(item, entries) {
    const made = entries.map((entry) => Object.assign({ id: this.#next++ }, EMPTY, { marks: new Map() }, entry));
    this.items.splice(this.items.indexOf(item) + 1, 0, ...made);
    return made;
  }

  remove(chosen) {
    const gone = new Set(chosen);
    for (const item of gone) item.status = "gone";
    this.items = this.items.filter((item) => !gone.has(item));
    this.changed("items");
  }

  setThreshold(kind, value) {
    const limit = value === null ? null : Math.min(Math.max(value, 0), 1);
    if (this.thresholds[kind] === limit) return;
    this.thresholds[kind] = limit;
    this.changed("thresholds");
  }

  setFilter(values) {
    Object.assign(this.filter, values);
    this.changed("filter");
  }

  changed(what) {
    this.#view = null;
    this.dispatchEvent(new CustomEvent("change", { detail: what }));
  }

  verdict(item) {
    if (item.status !== "done" || this.thresholds.score === null) return null;
    return item.score >= this.thresholds.score;
  }

  // The pictures that are shown, in their order.
  get view() {
    if (this.#view) return this.#view;
    const { verdict, mark, find, order } = this.filter, words = find.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = this.items.filter((item) => {
      if (verdict === "failed" ? item.status !== "failed" : verdict && this.verdict(item) !== (verdict === "anomalous")) return false;
      if (mark && (mark === "none" ? isMarked(item) : mark === "any" ? !isMarked(item) : !hasMark(item, mark))) return false;
      const name = item.name.toLowerCase();
      return words.every((word) => name.includes(word));
    });
    if (order !== "name") {
      const sign = order === "low" ? 1 : -1;
      shown.sort((a, b) => (a.score === null) - (b.score === null) || sign * (a.score - b.score) || a.id - b.id);
    } else {
      const collator = new Intl.Collator(undefined, { numeric: true });
      shown.sort((a, b) => collator.compare(a.name, b.name) || a.id - b.id);
    }
    this.#view = shown;
    return shown;
  }

  get counts() {
    const counts = { all: this.items.length, done: 0, failed: 0, waiting: 0, anomalous: 0, marked: 0 };
    for (const item of this.items) {
      if (item.status === "done") counts.done++;
      else if (item.status === "failed") counts.failed++;
      else counts.waiting++;
      if (this.verdict(item)) counts.anomalous++;
      if (isMarked(item)) counts.marked++;
    }
    return counts;
  }
})();

const EMPTY = {
  file: null, name: "", index: 1, time: null, status: "waiting", error: null, score: null, size: null, map: null, small: null,
  nearest: null, preview: null, thumbnail: null, mark: null, modelId: null, numbered: false,
};

export const isMarked = (item) => item.mark !== null || item.marks.size > 0;
const hasMark = (item, mark) => item.mark === mark || [...item.marks.values()].includes(mark);

// A region keeps its mark while the threshold moves: it is known by where its peak is.
export const keyOf = (region) => region.peak_position.join(",");

// What a picture is called: PATH#K for one of several in a file, as in predictions.jsonl.
export const titleOf = (item) => (item.numbered ? `${item.name}#${item.index}` : item.name);

export const shown = (value) => value.toFixed(4);
