// The list of pictures: only those that can be seen are in the document, however many there are.
import { $, atNextFrame, make, printable } from "./dom.js";
import { shown, state, titleOf } from "./state.js";
import { drawThumbnail } from "./thumbnails.js";

const list = $("cards");
const cards = new Map(); // by the picture's id
let open = () => {};
let focused = null, columns = 1, rowHeight = 1, gap = 14;

export function buildGrid(onOpen) {
  open = onOpen;
  const again = atNextFrame(showGrid);
  addEventListener("scroll", again, { passive: true });
  addEventListener("resize", again);
  list.addEventListener("focusin", ({ target }) => { focused = Number(target.closest("li")?.dataset.id) || focused; });
}

export function redrawThumbnails() {
  for (const card of cards.values()) card.version = null;
  showGrid();
}

function measure() {
  const width = list.clientWidth, narrow = innerWidth <= 560;
  gap = narrow ? 8 : 14;
  columns = Math.max(narrow ? 2 : 1, Math.floor((width + gap) / ((narrow ? 150 : 204) + gap)));
  const side = (width - gap * (columns - 1)) / columns;
  rowHeight = Math.round(Math.min(side, 240) + 66 + gap);
  return side;
}

export function showGrid() {
  const view = state.view, side = measure();
  const rows = Math.ceil(view.length / columns), top = list.getBoundingClientRect().top;
  list.style.height = `${Math.max(rows * rowHeight - gap, 0)}px`;
  const first = Math.max(0, Math.floor(-top / rowHeight) - 1), last = Math.ceil((innerHeight - top) / rowHeight) + 1;
  const from = first * columns, to = Math.min(view.length, last * columns);
  const wanted = new Set();
  if (!view.some((item) => item.id === focused)) focused = view[0]?.id ?? null;
  const keep = [...Array(Math.max(to - from, 0)).keys()].map((i) => from + i);
  const active = view.findIndex((item) => item.id === focused);
  if (active >= 0 && (active < from || active >= to)) keep.push(active); // a focus that is scrolled away is not lost
  for (const index of keep) {
    const item = view[index];
    wanted.add(item.id);
    const card = cards.get(item.id) ?? create(item);
    const place = `translate(${(index % columns) * (side + gap)}px, ${Math.floor(index / columns) * rowHeight}px)`;
    card.li.style.transform = place;
    card.li.style.width = `${side}px`;
    card.li.style.height = `${rowHeight - gap}px`;
    card.li.setAttribute("aria-setsize", view.length);
    card.li.setAttribute("aria-posinset", index + 1);
    card.button.tabIndex = item.id === focused ? 0 : -1;
    card.index = index;
    update(card, item);
  }
  for (const [id, card] of cards) {
    if (wanted.has(id)) continue;
    card.li.remove();
    cards.delete(id);
  }
  inOrder(keep.map((index) => cards.get(view[index].id)));
}

// Readers and the Tab key follow the document, so it has the order of the view.
function inOrder(order) {
  order.sort((a, b) => a.index - b.index);
  order.forEach(({ li }, i) => {
    if (list.children[i] === li) return;
    const hasFocus = li.contains(document.activeElement);
    list.insertBefore(li, list.children[i] ?? null);
    if (hasFocus) li.firstChild.focus({ preventScroll: true });
  });
}

function create(item) {
  const canvas = make("canvas"), why = make("span", { className: "why" }), pic = make("span", { className: "pic" }, canvas, why);
  const score = make("b"), verdict = make("span"), name = make("bdi");
  const words = make("span", { className: "words" }, make("span", { className: "first" }, score, verdict), name);
  const tag = make("span", { className: "tag", hidden: true });
  const button = make("button", { type: "button", className: "card" }, pic, words, tag);
  button.addEventListener("click", () => open(item));
  const li = make("li", {}, button);
  li.dataset.id = item.id;
  const card = { li, button, canvas, pic, why, score, verdict, name, tag, version: null };
  cards.set(item.id, card);
  list.append(li);
  return card;
}

function update(card, item) {
  const verdict = state.verdict(item), title = printable(titleOf(item));
  const waits = item.status === "waiting" || item.status === "asking";
  card.button.classList.toggle("waiting", waits);
  card.score.textContent = item.score === null ? (waits ? "…" : "–") : shown(item.score);
  card.verdict.textContent = item.status === "failed" ? "failed" : verdict === null ? "" : verdict ? "anomalous" : "normal";
  card.verdict.className = verdict === null && item.status !== "failed" ? "" : verdict === false ? "good" : "bad";
  card.name.textContent = item.time === null ? title : `${title} · ${item.time.toFixed(2)} s`;
  card.name.title = item.error ? printable(item.error) : title;
  card.tag.hidden = item.mark === null;
  card.tag.className = `tag ${item.mark ?? ""}`;
  card.tag.textContent = item.mark === "wrong" ? "✗" : "✓";
  const says = [title, item.score === null ? (waits ? "not scored yet" : `failed: ${printable(item.error ?? "")}`) : `score ${shown(item.score)}`];
  if (verdict !== null) says.push(verdict ? "anomalous" : "normal");
  if (item.mark) says.push(`marked ${item.mark}`);
  card.button.setAttribute("aria-label", says.join(", "));
  const version = item.status === "done" ? `${state.thresholds.pixel} ${state.alpha} ${item.modelId}` : item.status === "failed" ? `failed: ${item.error}` : null;
  if (version === null || version === card.version) return;
  card.version = version;
  card.why.textContent = item.error ? printable(item.error) : "no picture";
  if (item.error) card.pic.classList.add("nothing");
  else drawThumbnail(item, card.canvas, () => card.version === version && cards.get(item.id) === card);
}

// The picture that has the focus, or nothing.
export function focusedItem() {
  const id = Number(document.activeElement?.closest?.("#cards li")?.dataset.id);
  return state.view.find((item) => item.id === id) ?? null;
}

export function focusItem(item) {
  const index = state.view.indexOf(item);
  if (index < 0) return;
  focused = item.id;
  const top = list.getBoundingClientRect().top + Math.floor(index / columns) * rowHeight;
  const under = 60 + (getComputedStyle($("bar")).position === "sticky" ? $("bar").offsetHeight : 0);
  if (top < under) scrollBy(0, top - under - gap);
  else if (top + rowHeight > innerHeight) scrollBy(0, top + rowHeight - innerHeight);
  showGrid();
  cards.get(item.id)?.button.focus({ preventScroll: true });
}

// Move the focus by arrow keys; returns whether the key was one.
export function moveFocus(key) {
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity };
  if (!(key in steps) || !state.view.length) return false;
  const current = focusedItem();
  if (!current && key !== "ArrowRight" && key !== "ArrowDown") return false;
  const at = current ? state.view.indexOf(current) + steps[key] : 0;
  focusItem(state.view[Math.min(Math.max(at, 0), state.view.length - 1)]);
  return true;
}
