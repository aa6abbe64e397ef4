// How the models of this page are made, so that one which the service had to forget can be made again.
//
// A recipe has `choices` (what POST /v1/models takes; null: the service's own model as it is) and `references` (files of
// flawless pictures, which may be none).
import { ask, ServiceError } from "./api.js";
import { many } from "./dom.js";
import { labelOf } from "./labels.js";
import { state } from "./state.js";

export const OWN = "default";
const ATTEMPTS = 3;
const underWay = new Map(); // by model

export function formOf(files, model) {
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  form.append("model", model);
  return form;
}

// Make the model of a recipe; the answer describes it.
export async function made({ choices, references }) {
  for (let attempt = 1; ; attempt++) {
    const plain = choices ? await ask("POST", "/v1/models", { body: choices }) : { id: OWN };
    if (!references.length) return plain;
    try {
      return await ask("POST", "/v1/memories", { body: formOf(references, plain.id) });
    } catch (error) {
      if (error.status !== 404 || attempt > ATTEMPTS) throw error; // it may be forgotten before it is used
    }
  }
}

// Ask about the model in use; one that the service has forgotten is made again first. `bodyFor` is called with its id.
export async function askModel(path, bodyFor, { signal } = {}) {
  const { model } = state;
  for (let attempt = 1; ; attempt++) {
    if (model?.lost) throw lost(model);
    const id = model?.id;
    try {
      return await ask("POST", path, { body: bodyFor(id), signal });
    } catch (error) {
      if (error.status !== 404 || !model) throw error;
      if (attempt > ATTEMPTS) throw new ServiceError("The service forgets models faster than it uses them: more are in use than it keeps. Whoever runs it can raise --models.", 404);
      if (model.id === id) await again(model);
    }
  }
}

function again(model) {
  if (!underWay.has(model)) underWay.set(model, revived(model).finally(() => underWay.delete(model)));
  return underWay.get(model);
}

async function revived(model) {
  if (!model.recipe) {
    model.lost = true;
    state.changed("model");
    throw lost(model);
  }
  model.renewing = true;
  state.changed("model");
  try {
    model.id = (await made(model.recipe)).id;
  } finally {
    model.renewing = false;
    state.changed("model");
  }
}

const lost = (model) => new ServiceError(`The service has forgotten the model “${labelOf(model)}”, which compares with flawless pictures that this page does not have: choose another model.`, 404);

// What is said above the pictures about the model in use; nothing if all is well.
export function troubleOf(model) {
  if (model?.lost) return "The service has forgotten this model to make room for others. It compares with flawless pictures that this page does not have. Choose another one: all pictures are then scored again.";
  if (!model?.renewing) return "";
  const count = model.recipe.references.length, from = count ? ` from ${many(count, "flawless picture")}` : "";
  return `The service had forgotten this model to make room for others. It is being made again${from} …`;
}
