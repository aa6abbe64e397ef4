// What models and methods are called.
import { many } from "./dom.js";
import { shown } from "./state.js";

const METHODS = {
  anomalyclip: ["AnomalyCLIP", "Learned prompts, which find defects in pictures of any product."],
  words: ["Own words", "Compares pictures with your words for what is normal and what is not."],
  clip: ["CLIP", "CLIP as it was published, with a sentence about what the pictures show."],
  "clip-ac": ["CLIP-AC", "CLIP with many sentences about intact and damaged things."],
  winclip: ["WinCLIP", "Compares windows of the picture with sentences about intact and damaged things."],
  "april-gan": ["APRIL-GAN", "CLIP with trained layers, and sentences about intact and damaged things."],
  anomalydino: ["AnomalyDINO", "Needs no words: it only compares with the flawless pictures that you choose below."],
  coop: ["CoOp", "CLIP with a trained sentence about what the pictures show."],
};

export const methodOf = (name) => METHODS[name]?.[0] ?? name;
export const aboutMethod = (name) => METHODS[name]?.[1] ?? "";

const few = (texts) => `“${texts[0]}”${texts.length > 1 ? ` and ${texts.length - 1} more` : ""}`;

// Method, backbone, words, class and references of a model in one line; without its threshold.
export function labelOf(model) {
  const parts = model.exported ? [model.title] : [methodOf(model.method), model.backbone];
  if (model.prompts) parts.push(`prompts ${model.prompts}`);
  if (model.normal?.length) parts.push(`${few(model.normal)} or ${few(model.abnormal ?? [])}`);
  if (model.class_name) parts.push(`of “${model.class_name}”`);
  for (const [name, value] of Object.entries(model.options ?? {})) parts.push(`${name.replaceAll("_", " ")} ${value}`);
  if (model.tile) parts.push(`tiles of ${model.tile}`);
  const [first, ...others] = model.references ?? [];
  if (first !== undefined) parts.push(`${many(1 + others.length, "flawless picture")} (${first}${others.length ? ", …" : ""})`);
  return parts.join(" · ");
}

// One label for each model; no two are alike.
export function labelsOf(models) {
  const seen = new Map();
  return models.map((model) => {
    const parts = [labelOf(model)];
    if (model.id === "default") parts.push("as the service was started");
    if (model.threshold?.score != null) parts.push(`threshold ${shown(model.threshold.score)}`);
    if (model.lost) parts.push("forgotten by the service");
    const label = parts.join(" · "), count = (seen.get(label) ?? 0) + 1;
    seen.set(label, count);
    return count > 1 ? `${label} (${count})` : label;
  });
}
