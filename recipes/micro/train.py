"""Train the micro backbone from scratch on the cached pairs.

    python -m recipes.micro.train CACHE RUN [--steps N]

``log.jsonl`` and ``checkpoint.pt`` are written to RUN; after an interruption the same command resumes from them.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import default_rng
from recipes.micro import read_config, run
from recipes.micro.captions import all_captions, anomalous_captions, normal_captions, write_tokenizer
from recipes.micro.data import DIGEST, draw_pair
from torch import Tensor

from anomalyclip.anomaly import TEMPERATURE
from anomalyclip.clip.model import CLIP, Block, CLIPConfig, ImageFeatures
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.data.synthetic import IMAGE_SIZE
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing
from anomalyclip.images import MEAN, STD
from anomalyclip.metrics import auroc
from anomalyclip.training.journal import Journal

USED_SIZE = 180
"""Image size of the detector for a backbone whose positional table is for 120 px (37/24, as for ViT-L)."""


@dataclass(frozen=True)
class Batch:
    """Images of one step: first the flawless half, then the same scenes with their defects."""

    pixels: Tensor  # 2n 3 S S
    targets: Tensor  # 2n g g, target probability of each patch (`patch_targets`)
    labels: Tensor  # 2n, 1 if enough of a defect is in the crop
    names: list[str]
    defects: list[str]


class Scenes:
    """The cache, as batches that depend only on the step's number."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        if not (folder / DIGEST).is_file():
            raise AnomalyCLIPError(
                f"{folder} has no complete cache; make it with: python -m recipes.micro.data {folder}"
            )
        self.digest = (folder / DIGEST).read_text().strip()
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        self.labels: list[tuple[str, str]] = json.loads((folder / "labels.json").read_text())
        self.settings = settings
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int, patch: int) -> Batch:
        """Draw the crops of a step: one size and scale for all; position, rotation and colours for each scene."""
        rng = default_rng([self.settings["seed"], 0, step])
        count = self.settings["scenes_per_step"]
        crop, size = self.framing(step, patch, rng)
        chosen = [self._scene(number) for number in range(step * count, (step + 1) * count)]
        pixels, masks = [], []
        for index in chosen:
            image, mask = self._crop(index, crop, rng)
            pixels.append(image)
            masks.append(mask)
        # 2n S S 3: all flawless, then all defective
        images = torch.from_numpy(np.stack(pixels, 1)).flatten(0, 1)
        x = images.permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
        x = _recolour(x, rng)
        x = (x - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(STD)[:, None, None]
        m = torch.from_numpy(np.stack(masks)).float()[:, None]
        areas = m.sum((1, 2, 3))
        grid = patch_targets(m, size // patch, self.settings["whole_from"])
        names, defects = zip(*(self.labels[index] for index in chosen), strict=True)
        return Batch(
            pixels=x,
            targets=torch.cat([torch.zeros_like(grid), grid]),
            labels=torch.cat([torch.zeros(count), (areas >= 12).float()]),
            names=list(names),
            defects=list(defects),
        )

    def framing(self, step: int, patch: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the side of a step's crops, and the side that they are shown at: nearly whole images at the end."""
        if step >= self.settings["steps"] * (1 - self.settings["near_full"]):
            return int(rng.integers(172, IMAGE_SIZE + 1)), USED_SIZE
        return int(rng.integers(100, IMAGE_SIZE + 1)), patch * int(rng.integers(8, 13))

    def _scene(self, number: int) -> int:
        """Return the scene at a position: each pass has its own order, so all scenes are seen equally often."""
        turn, place = divmod(number, len(self.labels))
        if turn not in self._orders:
            self._orders[turn] = default_rng([self.settings["seed"], 1, turn]).permutation(len(self.labels))
        return int(self._orders[turn][place])

    def _crop(self, index: int, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Crop a scene, usually so that it has some of the defect; rotate and mirror it."""
        mask = np.unpackbits(self.masks[index], axis=-1).astype(bool)
        free = IMAGE_SIZE - crop
        top, left = rng.integers(0, free + 1, 2)
        spots = np.argwhere(mask)
        if len(spots) and rng.random() < 0.85:
            row, column = spots[rng.integers(len(spots))]
            top = np.clip(row - rng.integers(0, crop), 0, free)
            left = np.clip(column - rng.integers(0, crop), 0, free)
        window = (slice(int(top), int(top) + crop), slice(int(left), int(left) + crop))
        image, mask = self.images[index][:, window[0], window[1]], mask[window]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        image, mask = np.rot90(image, turns, (1, 2)), np.rot90(mask, turns)
        return (image[:, :, ::-1], mask[:, ::-1]) if mirror else (image, mask)


def patch_targets(masks: Tensor, side: int, whole_from: float) -> Tensor:
    """Return (n, g, g) for masks (n, 1, S, S): the defect's fraction of each patch; `whole_from` or more counts as 1.

    A crack two pixels wide covers a sixth of a patch, and a patch with the target 1/6 would never pass a threshold.
    """
    share: Tensor = F.adaptive_avg_pool2d(masks, side)[:, 0]
    return (share / whole_from).clamp(max=1)


def _recolour(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Change channels, contrast and brightness, in the same way for both images of a scene."""
    count = len(x) // 2
    gains = np.exp(rng.normal(0, 0.08, (count, 3, 1, 1))) * np.exp(rng.normal(0, 0.12, (count, 1, 1, 1)))
    offsets = rng.normal(0, 0.04, (count, 1, 1, 1))
    orders = np.stack([rng.permutation(3) if rng.random() < 0.4 else np.arange(3) for _ in range(count)])
    grey = torch.from_numpy(rng.random(count) < 0.12).repeat(2)[:, None, None, None]
    order = torch.from_numpy(orders).repeat(2, 1)[:, :, None, None].expand_as(x)
    x = x.gather(1, order)
    x = torch.where(grey, x.mean(1, keepdim=True), x)
    scale, shift = (torch.from_numpy(v.astype(np.float32)).repeat(2, 1, 1, 1) for v in (gains, offsets))
    if rng.random() < 0.15:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (x * scale + shift).clamp(0, 1)


class Texts:
    """All captions as token ids, cut to the longest, and the row of each."""

    def __init__(self, tokenizer: Tokenizer, photographed: Sequence[str] = ()) -> None:
        texts = all_captions(photographed)
        ids = tokenizer(texts)
        self.end = ids.argmax(-1)
        self.ids = ids[:, : int(self.end.max()) + 1]
        self.row = {text: number for number, text in enumerate(texts)}

    def encode(self, clip: CLIP, rows: list[int]) -> Tensor:
        """Return (T, E) normalised features."""
        embeddings = clip.token_embedding(self.ids[rows])
        return F.normalize(clip.encode_text(embeddings, self.end[rows]), dim=-1)


def losses(
    clip: CLIP,
    batch: Batch,
    texts: Texts,
    settings: dict[str, Any],
    dpam_layers: int,
    prompts: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the four losses of a batch.

    contrast: every caption of an image is a positive (both ways); normality: cross-entropy between the image's
    "flawless ..." and "... with a <its defect>" texts; ranking: a scene with its defect scores above the same scene
    without; local: weighted cross-entropy and dice of the local path's patches between the same texts. With features of
    prompts (2, E), the latter three use these instead for the share `by_prompts` of the scenes.
    """
    last = clip.config.vision_layers
    features = clip.encode_image(batch.pixels, layers=[last], dpam_layers=dpam_layers)
    captions = [normal_captions(name) for name in batch.names]
    damaged = [anomalous_captions(name, kind) for name, kind in zip(batch.names, batch.defects, strict=True)]
    true_of = captions + [
        d if label else c
        for c, d, label in zip(captions, damaged, batch.labels[len(captions) :], strict=True)
    ]
    pairs = [(c[0], d[0]) for c, d in zip(captions, damaged, strict=True)] * 2
    used = list(dict.fromkeys(text for texts_ in (*true_of, *pairs) for text in texts_))
    at = {text: number for number, text in enumerate(used)}
    text_features = texts.encode(clip, [texts.row[text] for text in used])  # T E
    image = F.normalize(features.image, dim=-1)
    positive = torch.zeros(len(image), len(used))
    for number, captions_ in enumerate(true_of):
        positive[number, [at[text] for text in captions_]] = 1
    logits = clip.logit_scale.exp().clamp(max=100) * image @ text_features.T
    by_text = positive.T[positive.sum(0) > 0]
    contrast = (
        F.cross_entropy(logits, positive / positive.sum(1, keepdim=True))
        + F.cross_entropy(logits.T[positive.sum(0) > 0], by_text / by_text.sum(1, keepdim=True))
    ) / 2
    two = text_features[torch.tensor([[at[n], at[d]] for n, d in pairs])]  # 2n 2 E
    if prompts is not None:
        two = torch.stack(two.chunk(2))  # 2 n 2 E
        count = round(settings["by_prompts"] * two.shape[1])
        two = torch.cat([prompts.expand_as(two[:, :count]), two[:, count:]], dim=1).flatten(0, 1)
    return {"contrast": settings["contrast_weight"] * contrast, **detection(features, two, batch, settings)}


def detection(
    features: ImageFeatures, two: Tensor, batch: Batch, settings: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the losses of telling a defect, as a whole and in patches, by two texts for each image (2n, 2, E)."""
    (patches,) = features.patches.values()
    image = F.normalize(features.image, dim=-1)
    evidence = torch.einsum("be,bke->bk", image, two) / TEMPERATURE
    evidence = evidence[:, 1] - evidence[:, 0]
    normality = F.binary_cross_entropy_with_logits(evidence, batch.labels)
    half = len(evidence) // 2
    seen = batch.labels[half:]
    ranking = (F.softplus(evidence[:half] - evidence[half:]) * seen).sum() / seen.sum().clamp(min=1)
    local = _local_loss(patches[:, 1:], two, batch.targets)
    return {
        "normality": normality,
        "ranking": settings["ranking_weight"] * ranking,
        "local": settings["local_weight"] * local,
    }


def _local_loss(patches: Tensor, two: Tensor, targets: Tensor) -> Tensor:
    """Weighted cross-entropy and dice of patches (B, N, E) between two texts per image (B, 2, E), for (B, g, g)."""
    local = torch.einsum("bne,bke->bnk", F.normalize(patches, dim=-1), two) / TEMPERATURE
    local = (local[..., 1] - local[..., 0]).view_as(targets)
    weight = torch.where(targets > 0.1, 3.0, 1.0)
    entropy = F.binary_cross_entropy_with_logits(local, targets, weight)
    probability = local.sigmoid()
    overlap = (probability * targets).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + targets.sum((1, 2)) + 1)
    return entropy + dice.mean()


class Validation:
    """New scenes of the *training* families; held-out families are only used in the evaluation."""

    def __init__(self, texts: Texts, patch: int, count: int = 200) -> None:
        pixels, masks, self.names, self.pairs = [], [], [], []
        for index in range(count):
            images, mask, name, kind = draw_pair(30200, index, 0.0)
            pixels.append(images)
            masks.append(mask)
            self.names += [name]
            self.pairs += [(normal_captions(name)[0], anomalous_captions(name, kind)[0])]
        x = torch.from_numpy(np.stack(pixels, 1)).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, (USED_SIZE, USED_SIZE), mode="bilinear", align_corners=False, antialias=True)
        self.pixels = (x - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(STD)[:, None, None]
        m = torch.from_numpy(np.stack(masks)).float()[:, None]
        grid = F.adaptive_avg_pool2d(m, USED_SIZE // patch)[:, 0]
        self.masks = torch.cat([torch.zeros_like(grid), grid])
        self.pairs = self.pairs * 2
        self.texts = texts

    @torch.no_grad()
    def measure(self, clip: CLIP, dpam_layers: int) -> dict[str, float]:
        """Return image and patch AUROC with the images' own category words."""
        last = clip.config.vision_layers
        used = list(dict.fromkeys(text for pair in self.pairs for text in pair))
        features = self.texts.encode(clip, [self.texts.row[text] for text in used])
        two = torch.stack([features[[used.index(n), used.index(d)]] for n, d in self.pairs])
        scores, maps = [], []
        for at in range(0, len(two), 50):
            part, pair = self.pixels[at : at + 50], two[at : at + 50]
            found = clip.encode_image(part, layers=[last], dpam_layers=dpam_layers)
            difference = pair[:, 1] - pair[:, 0]
            scores.append(torch.einsum("be,be->b", F.normalize(found.image, dim=-1), difference))
            patches = F.normalize(found.patches[last][:, 1:], dim=-1)
            maps.append(torch.einsum("bne,be->bn", patches, difference))
        labels = np.repeat([0, 1], len(self.names))
        image = auroc(labels, torch.cat(scores).numpy())
        pixel = auroc((self.masks > 0.5).flatten().numpy().astype(int), torch.cat(maps).flatten().numpy())
        return {"val_image_auroc": round(image, 4), "val_patch_auroc": round(pixel, 4)}


def learning_rate(step: int, settings: dict[str, Any]) -> float:
    """Return the learning rate of a step: a linear warm-up, constant for a share `hold` of the steps, half a cosine."""
    if step < settings["warm_up"]:
        return float(settings["learning_rate"] * (step + 1) / settings["warm_up"])
    held = max(settings["warm_up"], round(settings["hold"] * settings["steps"]))
    t = max(0, step - held) / max(1, settings["steps"] - held)
    return float(settings["learning_rate"] * 0.5 * (1 + math.cos(math.pi * t)))


def build(config: dict[str, Any], vocabulary: int) -> tuple[CLIP, int]:
    """Return an untrained model and how many of its blocks have the local path."""
    architecture = dict(config["model"])
    dpam_layers = architecture.pop("dpam_layers")
    torch.manual_seed(config["training"]["seed"])
    clip = CLIP(CLIPConfig(**architecture, vocab_size=vocabulary))
    # Residual branches start small, as in CLIP's initialisation.
    for block in clip.visual.transformer.resblocks:
        assert isinstance(block, Block)
        torch.nn.init.normal_(block.attn.out_proj.weight, std=0.02)
        torch.nn.init.normal_(block.mlp.c_proj.weight, std=0.02)
    torch.nn.init.normal_(clip.token_embedding.weight, std=0.02)
    return clip, dpam_layers


def optimiser(clip: CLIP, settings: dict[str, Any]) -> torch.optim.AdamW:
    """Return AdamW, without weight decay for gains, biases and tables."""
    decayed = [p for name, p in clip.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    others = [p for name, p in clip.named_parameters() if p.ndim < 2 or "embedding" in name]
    groups = [
        {"params": decayed, "weight_decay": settings["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=tuple(settings["betas"]))


def made_of(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return everything except the scenes that determines a run."""
    captions = hashlib.sha256("\n".join(all_captions()).encode()).hexdigest()
    return {"model": config["model"], "training": settings, "captions": captions}


class Training:
    """The model, its optimiser and the average of its weights, at a step."""

    prompts: Tensor | None = None
    """Features (2, E) of fixed prompts that the images are also trained by."""

    def __init__(
        self, config: dict[str, Any], settings: dict[str, Any], vocabulary: int, digest: str
    ) -> None:
        self.settings = settings
        self.clip, self.dpam_layers = build(config, vocabulary)
        self.adam = optimiser(self.clip, settings)
        self.average = {name: tensor.clone() for name, tensor in self.clip.state_dict().items()}
        self.steps_done, self.log_bytes = 0, 0
        self.recipe = json.dumps(made_of(config, settings) | {"scenes": digest}, sort_keys=True)

    def restore(self, checkpoint: Path) -> None:
        """Resume from a checkpoint of the same recipe, if there is one."""
        if not checkpoint.is_file():
            return
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != self.recipe:
            raise AnomalyCLIPError(
                f"{checkpoint} is from another recipe (steps, configuration, captions or scenes differ); "
                "choose another folder for the run, or remove it"
            )
        self.clip.load_state_dict(state["model"])
        self.adam.load_state_dict(state["optimiser"])
        self.average, self.steps_done = state["average"], state["step"]
        self.log_bytes = state["log_bytes"]

    def save(self, checkpoint: Path, log: Journal) -> None:
        """Write the state and the length of the log: later lines belong to work that will be repeated."""
        state = {
            "model": self.clip.state_dict(),
            "optimiser": self.adam.state_dict(),
            "average": self.average,
            "step": self.steps_done,
            "log_bytes": log.sync(),
            "recipe": self.recipe,
        }
        with replacing(checkpoint) as temporary:
            torch.save(state, temporary)

    def step(self, batch: Batch, texts: Texts) -> dict[str, float]:
        """Train on one batch; return its losses."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(self.steps_done, self.settings)
        parts = losses(self.clip, batch, texts, self.settings, self.dpam_layers, self.prompts)
        self.adam.zero_grad()
        torch.autograd.backward(parts["contrast"] + parts["normality"] + parts["ranking"] + parts["local"])
        torch.nn.utils.clip_grad_norm_(self.clip.parameters(), 1.0)
        self.adam.step()
        # The average follows faster at first, while the weights still change a lot.
        keep = min(self.settings["ema"], (self.steps_done + 1) / (self.steps_done + 10))
        with torch.no_grad():
            for name, tensor in self.clip.state_dict().items():
                self.average[name].lerp_(tensor, 1 - keep)
        self.steps_done += 1
        return {name: float(part.detach()) for name, part in parts.items()}


class Measure(Protocol):
    """What a checkpoint is measured by."""

    def measure(self, clip: CLIP, dpam_layers: int) -> dict[str, float]:
        """Return the figures of a model."""
        ...


def train(
    training: Training, scenes: Scenes, texts: Texts, patch: int, folder: Path, validation: Measure
) -> None:
    """Do all remaining steps; write a log line every 50 steps, and a checkpoint at intervals."""
    settings = training.settings
    last, every = settings["steps"], settings["checkpoint_every"]
    sums: dict[str, float] = {}
    began, counted = time.perf_counter(), 0
    # The next batch is drawn while the model processes this one.
    log = Journal(folder / "log.jsonl", length=training.log_bytes)
    with log, ThreadPoolExecutor(1) as drawing:
        upcoming = drawing.submit(scenes.batch, training.steps_done, patch)
        while training.steps_done < last:
            batch = upcoming.result()
            upcoming = drawing.submit(scenes.batch, training.steps_done + 1, patch)
            parts = training.step(batch, texts)
            sums = {name: sums.get(name, 0.0) + part for name, part in parts.items()}
            counted, done = counted + 1, training.steps_done
            saved = done % every == 0 or done == last
            if done % 50 and not saved:
                continue
            line: dict[str, Any] = {"step": done} | {name: round(v / counted, 4) for name, v in sums.items()}
            rate = counted * 2 * settings["scenes_per_step"] / (time.perf_counter() - began)
            line["images_per_second"] = round(rate, 1)
            if saved:
                averaged = CLIP.frozen(training.clip.config, training.average)
                line |= validation.measure(averaged, training.dpam_layers)
            log.write(line)
            print(json.dumps(line), flush=True)
            if saved:
                training.save(folder / "checkpoint.pt", log)
            began, sums, counted = time.perf_counter(), {}, 0


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every training needs: scenes, the folder of the run, and threads."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or resume from the last checkpoint."""
    parser = run_parser(__doc__)
    parser.add_argument(
        "--steps", type=int, help="number of steps of a pilot run, instead of the configuration's"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = read_config()
    settings = config["training"] | ({"steps": options.steps} if options.steps else {})
    scenes = Scenes(options.cache, settings)
    options.run.mkdir(parents=True, exist_ok=True)
    with replacing(options.run / "tokenizer.json") as temporary:
        vocabulary = write_tokenizer(temporary)
    texts = Texts(Tokenizer(options.run / "tokenizer.json", context_length=config["model"]["context_length"]))
    training = Training(config, settings, vocabulary, scenes.digest)
    training.restore(options.run / "checkpoint.pt")
    print(sum(p.numel() for p in training.clip.parameters()), "parameters,", len(scenes.labels), "scenes")
    patch = config["model"]["patch_size"]
    train(training, scenes, texts, patch, options.run, Validation(texts, patch))


if __name__ == "__main__":
    run(main)
