// The dialog of the model that scores: which one, another one of other words, or one that compares with flawless pictures.
import { ask } from "./api.js";
import { $, make, many, printable, say } from "./dom.js";
import { aboutMethod, labelOf, labelsOf, methodOf } from "./labels.js";
import { askModel, formOf, made, OWN, troubleOf } from "./recipes.js";
import { scoreAgain } from "./scoring.js";
import { shown, state } from "./state.js";

const FEW = 24;
let own = null, models = [], offers = null, references = [], busy = false;
let few = FEW, drawn = null; // how many flawless pictures are shown, and of which list

export function buildModels() {
  $("model-choice").addEventListener("change", ({ target }) => use(models[target.selectedIndex]));
  $("backbone").addEventListener("change", showMethods);
  $("method").addEventListener("change", showFields);
  for (const id of ["normal", "abnormal"]) $(id).addEventListener("input", showFields);
  $("make-model").addEventListener("click", () => work("making the model", makeModel));
  $("choose-references").addEventListener("click", () => $("reference-files").click());
  $("reference-files").addEventListener("change", ({ target }) => { addReferences([...target.files]); target.value = ""; });
  $("clear-references").addEventListener("click", () => { choose([]); $("choose-references").focus(); });
  $("remember").addEventListener("click", () => work(`looking at ${many(references.length, "flawless picture")}`, remember));
  $("stop-comparing").addEventListener("click", () => work("going back to the model without flawless pictures", stopComparing));
  $("calibrate").addEventListener("click", () => work("scoring the flawless pictures", calibrate));
  state.addEventListener("change", ({ detail }) => { if (detail === "model") showModels(); });
}

export function openModels() {
  if (!busy) $("model-message").textContent = "";
  $("models").showModal();
  $("models").scrollTop = 0;
  loadModels().catch(() => {}); // the page says itself that the service does not answer
}

export async function loadModels() {
  const answer = await ask("GET", "/v1/models");
  offers = answer.offers;
  own = Object.assign(own ?? {}, answer.models[0]);
  const known = new Map(models.map((one) => [one.id, one]));
  const listed = [own, ...answer.models.slice(1).map((one) => known.get(one.id) ?? { ...one, recipe: recipeOf(one) })];
  // Others are not there any more: what this page has made, it can make again.
  models = [...listed, ...models.filter((one) => !listed.includes(one) && (one.recipe || one === state.model))];
  if (state.model) state.model.lost = !listed.includes(state.model) && !state.model.recipe;
  const backbones = [...new Set(offers.choices.map((one) => one.backbone))], before = $("backbone").options.length ? $("backbone").value : null;
  $("backbone").replaceChildren(...backbones.map((name) => make("option", { value: name ?? "", textContent: printable(name ?? own.backbone ?? "as started"), selected: (name ?? "") === (before ?? own.backbone) })));
  $("make").hidden = !backbones.length;
  showMethods();
  if (state.model) showModels();
  else use(own, { rescored: true });
}

export function showModels() {
  const { model } = state, trouble = troubleOf(model);
  $("trouble").hidden = !trouble;
  $("trouble").firstChild.textContent = trouble;
  $("trouble-choose").hidden = !model?.lost;
  $("model").classList.toggle("off", !model || Boolean(trouble));
  $("model-title").textContent = model ? printable(labelOf(model)) : "no model";
  $("model").title = model ? `Model: ${printable(labelOf(model))}` : "";
  const labels = labelsOf(models);
  $("model-choice").replaceChildren(...models.map((one, i) => make("option", { textContent: printable(labels[i]), selected: one === model, disabled: Boolean(one.lost) })));
  showReferences();
  if (!model) return;
  const said = [model.title, `${model.image_size} × ${model.image_size} pixels`];
  if (model.references?.length) said.push(`compared with ${listOf(model.references)}`);
  if (model.normal) said.push(`normal: ${model.normal.join(", ")}; abnormal: ${(model.abnormal ?? []).join(", ")}`);
  said.push(model.threshold?.score != null ? `threshold ${shown(model.threshold.score)}${model.threshold.origin === "given" ? "" : ` (${model.threshold.origin})`}` : "no threshold of its own");
  if (model.backbone === "micro") said.push("small: it misses much on photographs");
  $("model-about").textContent = printable(`${said.join(" · ")}.`);
}

const listOf = (names) => names.slice(0, 5).join(", ") + (names.length > 5 ? ` and ${names.length - 5} more` : "");

// `rescored`: the model scores as the one before, so the pictures keep their scores.
function use(model, { rescored = false } = {}) {
  if (!model || model === state.model) return;
  state.model = model;
  if (model.recipe?.references.length && !busy) references = model.recipe.references;
  setThresholds(model.threshold); // one that was made for other scores would say nothing
  if (!rescored) scoreAgain();
  state.changed("model");
}

// Use a model that was just made; the service may have had it already.
function adopt(model, options) {
  const known = model.id === OWN ? own : models.find((one) => one.id === model.id);
  if (!known) models.splice(1, 0, model);
  else if (known !== own) Object.assign(known, model);
  use(known ?? model, options);
}

function setThresholds(threshold) {
  state.setThreshold("score", threshold?.score ?? null);
  state.setThreshold("pixel", threshold?.pixel ?? null);
}

// The flawless picture of this name that the model compares with, if it was given on this page.
export const referenceOf = (name) => state.model?.recipe?.references.find((file) => file.name === name) ?? null;

export const resetThresholds = () => setThresholds(state.model?.threshold);

// ---- another model

function showMethods() {
  const backbone = $("backbone").value || null, before = $("method").value || own.method;
  const methods = offers.choices.filter((one) => one.backbone === backbone).map((one) => one.method);
  $("method").replaceChildren(...methods.map((name) => make("option", { value: name, textContent: printable(methodOf(name)), selected: name === before })));
  showFields();
}

const chosen = () => offers.choices.find((one) => one.backbone === ($("backbone").value || null) && one.method === $("method").value);
const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

// A class is needed unless both sides have words of their own, and none of them leaves a place for it.
function needsClass(choice) {
  const [normal, abnormal] = [lines("normal"), lines("abnormal")];
  const own = choice.words && normal.length && abnormal.length && ![...normal, ...abnormal].some((text) => text.includes("{}"));
  return choice.class_name === "needed" && !own;
}

function showFields() {
  const choice = chosen();
  if (!choice) return;
  $("method-about").textContent = aboutMethod(choice.method);
  $("words").hidden = !choice.words;
  $("words-about").hidden = !choice.words;
  $("class-field").hidden = choice.class_name === "none";
  $("class-label").textContent = needsClass(choice) ? "What the pictures show" : "What the pictures show (may be left out)";
  $("class-name").required = needsClass(choice);
}

function contentOf(choice) {
  const content = { method: choice.method };
  if (choice.backbone) content.backbone = choice.backbone;
  if (choice.words) {
    const [normal, abnormal] = [lines("normal"), lines("abnormal")];
    if (normal.length !== 0 && abnormal.length === 0) throw missing("abnormal", "Give words for abnormal pictures too, or none for either.");
    if (normal.length === 0 && abnormal.length !== 0) throw missing("normal", "Give words for normal pictures too, or none for either.");
    if (normal.length) Object.assign(content, { normal, abnormal });
  }
  const name = $("class-name").value.trim();
  if (choice.class_name !== "none" && name) content.class_name = name;
  else if (needsClass(choice)) throw missing("class-name", `${methodOf(choice.method)} puts what the pictures show into its sentences: write it into the field, for example “object” or “metal nut”.`);
  return content;
}

function missing(id, message) {
  $(id).focus();
  return new Error(message);
}

async function makeModel() {
  const recipe = { choices: contentOf(chosen()), references: [] }, plain = await made(recipe);
  if (!plain.needs_references) {
    adopt({ ...plain, recipe });
    return "This model scores the pictures now.";
  }
  if (!references.length) throw missing("choose-references", `${methodOf(recipe.choices.method)} only compares with flawless pictures: choose some of them, then use this model.`);
  return compare({ ...recipe, references: [...references] });
}

// ---- flawless pictures

const isSame = (one, other) => one.name === other.name && one.size === other.size && one.lastModified === other.lastModified;

export function addReferences(files) {
  const added = files.filter((file) => !references.some((one) => isSame(one, file)));
  choose([...references, ...added]);
  say(`${many(added.length, "flawless picture")} added`);
}

function choose(files) {
  references = files;
  if (!busy) $("model-message").textContent = ""; // it was about others
  showReferences();
}

function removeReference(file) {
  const at = references.indexOf(file);
  choose(references.filter((one) => one !== file));
  say(`${printable(file.name)} taken away`);
  ($("reference-list").querySelectorAll("button")[Math.min(at, references.length - 1)] ?? $("choose-references")).focus();
}

function thumbnail(file) {
  const name = printable(file.name), image = make("img", { alt: name, title: name, src: URL.createObjectURL(file) });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));
  image.addEventListener("error", () => image.replaceWith(make("span", { className: "name", textContent: name, title: name })));
  const away = make("button", { type: "button", className: "away", textContent: "×", title: "Take away", "aria-label": `Take ${name} away` });
  away.addEventListener("click", () => removeReference(file));
  return make("li", {}, image, away);
}

function moreButton(count) {
  const button = make("button", { type: "button", className: "quiet", textContent: `Show ${count} more` }), before = few;
  button.addEventListener("click", () => {
    few += 4 * FEW;
    drawn = null;
    showReferences();
    $("reference-list").querySelectorAll("button")[before].focus();
  });
  return button;
}

function showReferences() {
  const { model } = state, count = references.length, inUse = model?.references?.length ?? 0;
  if (drawn !== references) {
    $("reference-list").replaceChildren(...references.slice(0, few).map(thumbnail));
    if (count > few) $("reference-list").append(make("li", {}, moreButton(count - few)));
    drawn = references;
  }
  const used = model?.recipe?.references ?? [], same = used.length === count && references.every((file) => used.includes(file));
  $("clear-references").hidden = count < 2;
  $("remember").hidden = !count;
  $("remember").disabled = busy || same;
  $("remember").textContent = same ? `Compared with ${count === 1 ? "this one" : `these ${count}`}` : `Compare with ${count === 1 ? "this one" : `these ${count}`}`;
  $("stop-comparing").hidden = !inUse;
  $("calibration").hidden = !count && !inUse;
  $("reference-actions").hidden = !count && !inUse;
}

// How the model in use is made without flawless pictures. Of one that was not made here, what the service tells of it.
function choicesWithout(model) {
  const choices = model.recipe ? model.recipe.choices : model === own ? null : toldOf(model);
  return choices ?? (own.references.length ? {} : null);
}

function toldOf(model) {
  const content = { method: model.method, ...model.options };
  for (const name of ["normal", "abnormal", "class_name", "tile"]) if (model[name] !== null) content[name] = model[name];
  if (offers.backbones.includes(model.backbone)) content.backbone = model.backbone;
  if (offers.prompts.includes(model.prompts)) content.prompts = model.prompts;
  const isAlike = model.method === own.method && model.backbone === own.backbone && model.image_size === own.image_size;
  if (!isAlike) content.image_size = model.image_size;
  return content;
}

// Of a model that was not made here: what it was made of is known, unless that includes pictures.
const recipeOf = (model) => (model.references.length ? undefined : { choices: toldOf(model), references: [] });

const without = (failed) => (failed?.length ? ` ${many(failed.length, "file")} could not be used: ${failed.map((one) => one.error).slice(0, 3).join("; ")}.` : "");

async function compare(recipe) {
  if (!recipe.choices && own.exported) throw new Error(`The service was started with the exported file ${own.title}, which cannot be given flawless pictures. Make another model first.`);
  const { failed, ...model } = await made(recipe);
  const used = ({ name }) => model.references.includes(name) || !failed.some((one) => one.name === name);
  references = references.filter(used);
  adopt({ ...model, recipe: { ...recipe, references: recipe.references.filter(used) } });
  return `Pictures are compared with ${many(model.references.length, "flawless picture")} now.${without(failed)} “Find a threshold” gives verdicts.`;
}

const remember = () => compare({ choices: choicesWithout(state.model), references: [...references] });

async function stopComparing() {
  const recipe = { choices: choicesWithout(state.model), references: [] };
  let plain = await made(recipe);
  if (plain.needs_references || (plain.id === OWN && own.needs_references)) plain = own;
  if (plain === state.model || plain.needs_references) throw new Error(`${methodOf(state.model.method)} only compares with flawless pictures: make another model to score without them.`);
  adopt({ ...plain, recipe });
  if (plain === own && own.references.length) return `Pictures are compared with the ${many(own.references.length, "flawless picture")} that the service was started with.`;
  return "Pictures are not compared with flawless ones any more. Those that you chose stay in the list.";
}

// A model with references compares each of them with the others; any other scores the flawless pictures.
async function calibrate() {
  const compares = state.model.references.length > 0, { model } = state;
  const answer = await askModel("/v1/calibrate", (id) => {
    const form = formOf(compares ? [] : references, id);
    form.append("false_alarm_rate", $("rate").value);
    return form;
  });
  const recipe = model.recipe ?? (model === own ? { choices: null, references: [] } : undefined);
  adopt({ ...model, id: answer.model, threshold: answer.threshold, recipe }, { rescored: true });
  const of = compares ? "each compared with the others" : "scored";
  const head = `Threshold ${shown(answer.threshold.score)}, from ${many(answer.images, "flawless picture")}, ${of}.${without(answer.failed)}`;
  return [head, answer.threshold.says.join(" ")];
}

// Do one thing at a time, and say how it went.
async function work(what, task) {
  if (busy) return;
  busy = true;
  const line = $("model-message"), pressed = document.activeElement, buttons = ["make-model", "remember", "stop-comparing", "calibrate"].map($);
  for (const button of buttons) button.disabled = true;
  line.textContent = `${what} …`;
  line.className = "message-line busy";
  try {
    const [head, rest = ""] = [await task()].flat();
    line.replaceChildren(printable(head), make("span", { className: "small soft", textContent: printable(rest) }));
    line.className = "message-line good";
  } catch (error) {
    line.textContent = printable(error.message);
    line.className = "message-line bad";
  }
  busy = false;
  for (const button of buttons) button.disabled = false;
  showReferences();
  if (pressed.disabled || pressed.hidden) $("calibrate").focus(); // what comes next
}
