// The model that scores: which one, another one made of words, or one that compares with flawless pictures.
import { ask } from "./api.js";
import { $, make, many, printable } from "./dom.js";
import { scoreAgain } from "./scoring.js";
import { shown, state } from "./state.js";

let models = [], references = [], busy = false;
const compared = new Map(); // by model: the files that it was made of

export function buildModels() {
  $("model-choice").addEventListener("change", ({ target }) => use(models.find((one) => one.id === target.value)));
  $("method").addEventListener("change", showWords);
  $("make-model").addEventListener("click", () => work("making the model", makeModel));
  $("choose-references").addEventListener("click", () => $("reference-files").click());
  $("reference-files").addEventListener("change", ({ target }) => { addReferences([...target.files]); target.value = ""; });
  $("remember").addEventListener("click", () => work(`looking at ${many(references.length, "flawless picture")}`, remember));
  $("calibrate").addEventListener("click", () => work("scoring the flawless pictures", calibrate));
}

export async function loadModels() {
  const answer = await ask("GET", "/v1/models");
  models = answer.models;
  const options = (names, chosen) => names.map((name) => make("option", { value: name, textContent: name, selected: name === chosen }));
  $("backbone").replaceChildren(...options(answer.offers.backbones, models[0].backbone));
  $("method").replaceChildren(...options(answer.offers.methods, models[0].method));
  $("make").hidden = !answer.offers.backbones.length;
  showWords();
  if (!state.model) use(models[0], { rescored: true });
  else if (!models.some((one) => one.id === state.model.id)) use(models[0]); // it had to make room
  showModels();
}

export function showModels() {
  const { model } = state;
  $("model").classList.toggle("off", !model);
  $("model-title").textContent = model ? printable(shortTitleOf(model)) : "no model";
  $("model").title = model ? `Model: ${printable(titleOf(model))}` : "";
  $("model-choice").replaceChildren(...models.map((one) => make("option", { value: one.id, textContent: printable(shortTitleOf(one)), selected: one.id === model?.id })));
  if (!model) return;
  const said = [`${model.image_size} × ${model.image_size} pixels`];
  if (model.references?.length) said.push(`compared with ${many(model.references.length, "flawless picture")}`);
  if (model.normal) said.push(`normal: ${model.normal.join(", ")}; abnormal: ${(model.abnormal ?? []).join(", ")}`);
  said.push(model.threshold?.score != null ? `threshold ${shown(model.threshold.score)}${model.threshold.origin === "given" ? "" : ` (${model.threshold.origin})`}` : "no threshold of its own");
  if (model.backbone === "micro") said.push("knows generated surfaces and little else");
  $("model-about").textContent = printable(`${said.join(" · ")}.`);
}

// Where there is little room: what the prompts were trained on is left out, so that the references at the end are seen.
const shortTitleOf = (model) => titleOf(model).split(", ").filter((part) => !part.startsWith("trained on ")).join(", ");
const titleOf = (model) => model.title + (model.references?.length && !/reference/.test(model.title) ? `, ${many(model.references.length, "reference")}` : "");

// `rescored`: the model scores as the one before, so the pictures keep their scores.
function use(model, { rescored = false } = {}) {
  if (!model || model.id === state.model?.id) return;
  state.model = model;
  setThresholds(model.threshold); // one that was made for other scores would say nothing
  showModels();
  if (!rescored) scoreAgain();
  state.changed("model");
}

function setThresholds(threshold) {
  state.setThreshold("score", threshold?.score ?? null);
  state.setThreshold("pixel", threshold?.pixel ?? null);
}

// The flawless picture of this name that the model compares with, if it was given on this page.
export const referenceOf = (name) => (compared.get(state.model?.id) ?? []).find((file) => file.name === name) ?? null;

export const resetThresholds = () => setThresholds(state.model?.threshold);

function showWords() {
  $("words").hidden = $("method").value !== "words";
}

const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

async function makeModel() {
  const content = { backbone: $("backbone").value, method: $("method").value };
  if (content.method === "words") Object.assign(content, { normal: lines("normal"), abnormal: lines("abnormal") });
  if ($("class-name").value.trim()) content.class_name = $("class-name").value.trim();
  const model = await ask("POST", "/v1/models", { body: content });
  adopt(model);
  return "This model scores the pictures now.";
}

export function addReferences(files) {
  references.push(...files);
  $("reference-list").replaceChildren(...references.slice(0, 24).map((file) => {
    const image = make("img", { alt: printable(file.name), title: printable(file.name), src: URL.createObjectURL(file) });
    image.addEventListener("load", () => URL.revokeObjectURL(image.src));
    image.addEventListener("error", () => image.replaceWith(printable(file.name)));
    return make("li", {}, image);
  }));
  if (references.length > 24) $("reference-list").append(make("li", { textContent: `and ${references.length - 24} more` }));
  $("reference-actions").hidden = !references.length;
}

function formOf(files) {
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  form.append("model", state.model.id);
  return form;
}

const without = (failed) => (failed?.length ? ` ${many(failed.length, "file")} could not be used: ${failed.map((one) => one.error).slice(0, 3).join("; ")}.` : "");

async function remember() {
  const files = [...references], model = await ask("POST", "/v1/memories", { body: formOf(files) });
  compared.set(model.id, files);
  adopt(model);
  return `Pictures are compared with ${many(model.references.length, "flawless picture")} now.${without(model.failed)} “Find a threshold” gives verdicts.`;
}

// A model with references compares each of them with the others; any other scores the flawless pictures.
async function calibrate() {
  const compares = state.model.references.length > 0, form = formOf(compares ? [] : references);
  form.append("false_alarm_rate", $("rate").value);
  const answer = await ask("POST", "/v1/calibrate", { body: form });
  compared.set(answer.model, compared.get(state.model.id) ?? []);
  await loadModels();
  adopt(models.find((one) => one.id === answer.model), { rescored: true });
  const of = compares ? "each compared with the others" : "scored";
  const head = `Threshold ${shown(answer.threshold.score)}, from ${many(answer.images, "flawless picture")}, ${of}.${without(answer.failed)}`;
  return [head, answer.threshold.says.join(" ")];
}

function adopt(model, options) {
  models = [model, ...models.filter((one) => one.id !== model.id)];
  use(model, options);
}

// Do one thing at a time, and say how it went.
async function work(what, task) {
  if (busy) return;
  busy = true;
  const line = $("model-message"), buttons = ["make-model", "remember", "calibrate"].map($);
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
  for (const button of buttons) button.disabled = false;
  busy = false;
}
