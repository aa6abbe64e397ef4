// The page: puts the parts together, and listens to the keyboard and to drops.
import { configure } from "./api.js";
import { $, atNextFrame, many, say } from "./dom.js";
import { download } from "./downloads.js";
import { buildGrid, focusItem, focusedItem, moveFocus, redrawThumbnails, showGrid } from "./grid.js";
import { buildHistogram, middle, scoreStep, showHistogram } from "./histogram.js";
import { filesOfDrop, filesOfInput } from "./intake.js";
import { addReferences, buildModels, loadModels, openModels, resetThresholds } from "./models.js";
import { forget, retryFailed, scoreWaiting } from "./scoring.js";
import { shown, state } from "./state.js";
import * as viewer from "./viewer.js";

function add({ found, skipped }) {
  const sources = new Map();
  state.add(found.map(({ file, name }) => {
    if (!sources.has(file)) sources.set(file, Symbol(name));
    return { file, name, source: sources.get(file) };
  }));
  const others = skipped ? `, ${many(skipped, "other file")} skipped` : "";
  if (found.length || skipped) say(`${many(found.length, "picture")} added${others}`);
  scoreWaiting();
}

// ---- what is shown

const showCounts = () => {
  const { all, done, failed, waiting, anomalous } = state.counts, judged = state.thresholds.score !== null;
  for (const id of ["overview", "bar", "add", "downloads"]) $(id).hidden = !all;
  $("start").hidden = Boolean(all);
  $("add-folder").hidden = !all || !("webkitdirectory" in $("folder"));
  const parts = [["", done, "scored"]];
  if (judged) parts.push(["bad", anomalous, "anomalous"], ["good", done - anomalous, "normal"]);
  if (failed) parts.push(["", failed, "failed"]);
  if (waiting) parts.push(["soft", waiting, "waiting"]);
  $("counts").replaceChildren(...parts.map(([kind, count, what]) => {
    const box = document.createElement("div"), number = document.createElement("b"), name = document.createElement("span");
    [number.textContent, number.className, name.textContent] = [count.toLocaleString("en"), kind, what];
    box.append(number, name);
    return box;
  }));
  const progress = $("progress");
  progress.hidden = !waiting;
  progress.setAttribute("aria-valuemax", all);
  progress.setAttribute("aria-valuenow", all - waiting);
  progress.firstChild.style.width = `${all ? (100 * (all - waiting)) / all : 0}%`;
  $("downloads").disabled = !done;
  $("retry").hidden = !failed;
  showRemark(done, anomalous, judged);
  const view = state.view.length;
  $("remove").disabled = !view;
  $("remove").textContent = view === all ? "Remove all" : "Remove these";
  $("shown").value = view === all ? many(all, "picture") : `${view.toLocaleString("en")} of ${many(all, "picture")}`;
  $("nothing").hidden = !all || view > 0;
  $("verdict").disabled = !judged && !failed;
};

// What speaks against model or threshold, as the page of `predict` says it.
function showRemark(done, anomalous, judged) {
  let text = "";
  if (done && !judged) text = "Without a threshold there are no verdicts. Drag the line in the histogram, or have one found from flawless pictures.";
  else if (done >= 10 && anomalous >= 0.9 * done) text = `${anomalous} of ${done} pictures are anomalous. Unless most of them are defective, the threshold or the model does not suit them: have a threshold found from flawless pictures of this product.`;
  $("remark").firstChild.textContent = text;
  $("remark").hidden = !text;
}

function showLimits() {
  for (const [id, kind] of [["score-limit", "score"], ["pixel-limit", "pixel"]]) {
    if (document.activeElement !== $(id)) $(id).value = state.thresholds[kind] === null ? "" : shown(state.thresholds[kind]);
  }
}

const changes = new Set();
const show = atNextFrame(() => {
  showCounts();
  showHistogram();
  showLimits();
  showGrid();
  if (changes.has("alpha")) redrawThumbnails();
  if (["thresholds", "marks", "alpha"].some((one) => changes.has(one))) viewer.refreshViewer();
  else viewer.showItem();
  changes.clear();
});

let toldWaiting = 0;
state.addEventListener("change", ({ detail }) => {
  changes.add(detail);
  show();
  if (detail !== "scores") return;
  const { waiting, done, anomalous, failed } = state.counts;
  if (!waiting && toldWaiting) {
    const judged = state.thresholds.score === null ? "" : `, ${anomalous} anomalous`;
    say(`${many(done, "picture")} scored${judged}${failed ? `, ${failed} failed` : ""}`);
  }
  toldWaiting = waiting;
});

// ---- files

$("choose").addEventListener("click", () => $("files").click());
$("add").addEventListener("click", () => $("files").click());
for (const id of ["choose-folder", "add-folder"]) $(id).addEventListener("click", () => $("folder").click());
for (const id of ["files", "folder"]) {
  $(id).addEventListener("change", ({ target }) => { add(filesOfInput(target)); target.value = ""; });
}

// A phone turns its photographs into JPEG only for those who ask for images; a folder cannot be chosen everywhere.
if (matchMedia("(pointer: coarse)").matches) $("files").accept = "image/*,video/*,.dcm,.zip";
if (!("webkitdirectory" in $("folder"))) $("choose-folder").remove();

let depth = 0;
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  depth++;
  const references = $("models").open;
  $("dropping").hidden = references;
  $("reference-drop").classList.toggle("over", references);
});
addEventListener("dragleave", (event) => { if (hasFiles(event) && --depth <= 0) dragEnds(); });
addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener("drop", async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragEnds();
  const dropped = await filesOfDrop(event.dataTransfer);
  if ($("models").open) addReferences(dropped.found.map(({ file }) => file));
  else add(dropped);
});
addEventListener("paste", (event) => {
  if (/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) add({ found: files.map((file) => ({ file, name: file.name })), skipped: 0 });
});

function dragEnds() {
  depth = 0;
  $("dropping").hidden = true;
  $("reference-drop").classList.remove("over");
}

addEventListener("beforeunload", (event) => { if (state.items.length) event.preventDefault(); });

// ---- filters and thresholds

$("find").addEventListener("input", ({ target }) => state.setFilter({ find: target.value }));
$("verdict").addEventListener("change", ({ target }) => state.setFilter({ verdict: target.value }));
$("marks").addEventListener("change", ({ target }) => state.setFilter({ mark: target.value }));
$("order").addEventListener("change", ({ target }) => state.setFilter({ order: target.value }));
$("photos").addEventListener("change", ({ target }) => {
  document.documentElement.classList.toggle("photos", target.checked);
  redrawThumbnails();
});
$("retry").addEventListener("click", retryFailed);
$("remove").addEventListener("click", () => {
  const { length } = state.view;
  if (confirm(`Remove ${many(length, "picture")} from this page, with scores and marks?`)) forget(state.view);
});
$("clear-filters").addEventListener("click", () => {
  for (const id of ["find", "verdict", "marks"]) $(id).value = "";
  state.setFilter({ find: "", verdict: "", mark: "" });
});
for (const [id, kind] of [["score-limit", "score"], ["pixel-limit", "pixel"]]) {
  $(id).addEventListener("change", ({ target }) => {
    const value = target.value.trim() === "" ? null : Number(target.value);
    const usable = !target.validity.badInput && (value === null || (value >= 0 && value <= 1));
    if (usable) state.setThreshold(kind, value);
    else target.value = state.thresholds[kind] === null ? "" : shown(state.thresholds[kind]);
    $("limit-message").textContent = usable ? "" : `${value === null ? "This" : `“${value}”`} is no threshold: expected a number from 0 to 1, as all scores and maps are. It stays as it was.`;
    showLimits();
  });
  $(id).addEventListener("blur", showLimits);
}
$("reset-limits").addEventListener("click", resetThresholds);
state.addEventListener("change", ({ detail }) => { if (detail === "thresholds") $("limit-message").textContent = ""; });

// ---- dialogs

$("help").addEventListener("click", () => $("keys").showModal());
for (const id of ["model", "find-threshold", "trouble-choose"]) {
  $(id).addEventListener("click", openModels);
}
$("downloads").addEventListener("click", openDownloads);
for (const dialog of document.querySelectorAll("dialog.sheet")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog && dialog.id !== "key") dialog.close(); });
}

function openDownloads() {
  const { done, waiting, marked } = state.counts;
  if (!done) return;
  const rest = waiting ? ` ${many(waiting, "picture")} still waiting.` : "";
  $("download-about").textContent = `${many(done, "picture")}, ${marked} marked, with the thresholds as they are now.${rest} Findings marked wrong are left out of COCO and Label Studio.`;
  const some = state.view.filter((item) => item.status === "done").length;
  $("only").hidden = some === 0 || some === done;
  $("only").lastElementChild.textContent = `Only those that the filters show: ${some.toLocaleString("en")} of ${done.toLocaleString("en")}`;
  $("download-message").textContent = "";
  $("download-message").className = "message-line";
  if (!$("download").open) $("download").showModal();
}

for (const button of document.querySelectorAll("[data-kind]")) {
  button.addEventListener("click", async () => {
    const line = $("download-message"), buttons = document.querySelectorAll("[data-kind]");
    for (const one of buttons) one.disabled = true;
    line.className = "message-line busy";
    try {
      const filtered = $("only-shown").checked && !$("only").hidden;
      const name = await download(button.dataset.kind, (text) => { line.textContent = text; }, { filtered });
      [line.textContent, line.className] = [`${name} is in your downloads.`, "message-line good"];
    } catch (error) {
      [line.textContent, line.className] = [error.message, "message-line bad"];
    }
    for (const one of buttons) one.disabled = false;
    button.focus();
  });
}

function askForKey(refused) {
  return new Promise((resolve) => {
    const dialog = $("key");
    $("key-message").textContent = refused ? "The service does not accept this key. Try again." : "Whoever runs the service has it. It is kept until this tab is closed.";
    $("key-text").value = "";
    dialog.returnValue = "";
    dialog.showModal();
    $("key-text").focus();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? $("key-text").value : null), { once: true });
  });
}
$("key-cancel").addEventListener("click", () => $("key").close(""));

// ---- keys

const isTyping = ({ target }) => /^(SELECT|TEXTAREA)$/.test(target.tagName) || (target.tagName === "INPUT" && !/^(range|checkbox)$/.test(target.type));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping(event)) {
    if (event.key === "Escape" && event.target.type === "search") event.target.blur();
    return;
  }
  const open = viewer.openItem(), sheet = document.querySelector("dialog.sheet[open]");
  if (sheet) return;
  if (open ? keyInViewer(event, open) : keyInList(event)) event.preventDefault();
});

function keyForBoth({ key }) {
  const { score, pixel } = state.thresholds, moved = (value, step) => Math.round(1e6 * (value + step)) / 1e6;
  const [from, step] = [score ?? middle(), scoreStep()];
  const steps = { "[": ["pixel", moved(pixel ?? 0.5, -0.01)], "]": ["pixel", moved(pixel ?? 0.5, 0.01)], ",": ["score", moved(from, -step)], ".": ["score", moved(from, step)] };
  if (key in steps) {
    state.setThreshold(...steps[key]);
    say(`${steps[key][0]} threshold ${shown(state.thresholds[steps[key][0]])}`);
  } else if (key === "?") $("keys").showModal();
  else if (key === "d") openDownloads();
  else return false;
  return true;
}

function keyInViewer(event, item) {
  const { key, target } = event, region = viewer.chosenRegion();
  if (target.type === "range" && /^(Arrow|Home|End|Page)/.test(key)) return false;
  if (key === " " && target.tagName === "BUTTON") return false;
  if (key === "ArrowRight" || key === "ArrowDown" || key === "n") viewer.go(1);
  else if (key === "ArrowLeft" || key === "ArrowUp" || key === "p") viewer.go(-1);
  else if (key === "r") viewer.mark("right");
  else if (key === "w") viewer.mark("wrong");
  else if (key === "R") viewer.markRegion(region, "right");
  else if (key === "W") viewer.markRegion(region, "wrong");
  else if (key === " ") viewer.toggleBare();
  else if (/^[1-9]$/.test(key)) viewer.choose(Number(key) - 1);
  else if (key === "+" || key === "=") viewer.zoomBy(1.4);
  else if (key === "-") viewer.zoomBy(1 / 1.4);
  else if (key === "0") viewer.zoomAt(1);
  else return keyForBoth(event);
  return item !== null;
}

function keyInList(event) {
  const { key } = event, item = focusedItem();
  if (event.target.closest?.("[role=slider]")) return false;
  if (event.target.type !== "range" && moveFocus(key)) return true;
  if (key === "/" && !$("bar").hidden) $("find").focus();
  else if (key === "a") $("files").click();
  else if (key === "m") $("model").click();
  else if (key === " " && !item && event.target === document.body) return false;
  else if (key === " " && item) $("photos").click();
  else if ((key === "r" || key === "w") && item) {
    const kind = key === "r" ? "right" : "wrong";
    item.mark = item.mark === kind ? null : kind;
    say(item.mark ? `marked ${kind}` : "mark taken back");
    state.changed("marks");
  } else if (key === "Delete" && item) {
    const at = state.view.indexOf(item);
    forget([item]);
    say("taken from the list");
    focusItem(state.view[Math.min(at, state.view.length - 1)]);
  } else return keyForBoth(event);
  return true;
}

// ---- start

configure({
  ask: askForKey,
  tell: (answers) => {
    $("connection").hidden = answers;
    $("connection").textContent = answers ? "" : "The service does not answer. Trying again …";
  },
});
buildHistogram();
buildGrid(viewer.openViewer);
viewer.buildViewer(focusItem);
buildModels();
show();
loadModels().then(() => document.documentElement.classList.add("ready")).catch((error) => {
  $("model-title").textContent = "no model";
  $("connection").hidden = false;
  $("connection").textContent = `${error.message}. Load this page again to try once more.`;
});
