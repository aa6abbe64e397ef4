"""Learn the object-agnostic prompts on the micro backbone, as published, from new images of training families.

python -m recipes.micro.learn_prompts [--photographs CACHE]

With the cache of a training that went on with photographs, the images are of the same mixture.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recipes.micro import ASSETS, read_config, run
from recipes.micro.data import ALBUM, Mixture, draw_scene, resized_mask
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from anomalyclip.clip.backbone import load_clip
from anomalyclip.clip.model import CLIP
from anomalyclip.clip_core import default_dpam_layers, default_image_size
from anomalyclip.images import normalise, squash
from anomalyclip.prompts import Prompts
from anomalyclip.training.batches import Batch
from anomalyclip.training.learning import Losses, Optimizer
from anomalyclip.training.of_prompts import PromptTask
from anomalyclip.training.start import prompt_ids, prompt_tokens

_SURFACES = "generated images of the training families"

_PHOTOGRAPHS = ", and photographs with drawn defects"


def frozen_features(clip: CLIP, settings: dict[str, Any], scenes: Mixture) -> TensorDataset:
    """Return image features, patch features, masks and labels; one scene in `flawless_every` has no defect."""
    size, last = default_image_size(clip.config), clip.config.vision_layers
    rows: list[tuple[Tensor, Tensor, Tensor, int]] = []
    for index in range(settings["images"]):
        images, mask, _, _ = draw_scene(scenes, index)
        anomalous = int(index % settings["flawless_every"] > 0)
        pixels = normalise(squash(Image.fromarray(images[anomalous]), size))[None]
        with torch.inference_mode():
            found = clip.encode_image(
                torch.from_numpy(pixels), layers=[last], dpam_layers=default_dpam_layers(clip.config)
            )
        small = torch.from_numpy(resized_mask(mask & bool(anomalous), size))
        rows.append((found.image[0], found.patches[last][0, 1:], small, anomalous))
    image, patches, masks, labels = zip(*rows, strict=True)
    return TensorDataset(
        torch.stack(image).clone(),
        torch.stack(patches).clone(),
        torch.stack(masks),
        torch.tensor(labels, dtype=torch.bool),
    )


def learn(
    clip: CLIP,
    features: TensorDataset,
    token_ids: Tensor,
    settings: dict[str, Any],
    *,
    trained_on: str = _SURFACES,
) -> Prompts:
    """Learn the prompts as `anomalyclip train` does, from features in memory; all randomness comes from the seed."""
    generator = torch.Generator().manual_seed(settings["seed"])
    start = Prompts.initial(
        token_ids,
        width=clip.config.text_width,
        length=settings["length"],
        depth=settings["depth"],
        deep_length=settings["deep_tokens"],
        generator=generator,
    )
    task = PromptTask(clip, start, local_weight=settings["pixel_weight"])
    optimizer = Optimizer(
        task.learner.parameters(),
        task.losses,
        learning_rate=settings["learning_rate"],
        betas=tuple(settings["betas"]),
    )
    loader = DataLoader(features, settings["batch_size"], shuffle=True, generator=generator)
    for epoch in range(1, settings["epochs"] + 1):
        total = np.zeros(len(Losses._fields))
        for image, patches, masks, labels in loader:
            batch = Batch(image, labels, patches[None], masks)  # one layer
            total += optimizer.step(batch, moment=f"epoch {epoch}")
        means = Losses(*(total / len(loader)).round(4).tolist())
        print(json.dumps({"epoch": epoch, **means._asdict()}), flush=True)
    return task.learner.value({"backbone": "micro", "trained_on": trained_on})


def main() -> None:
    """Learn the prompts and put them into the package."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--photographs", type=Path, metavar="CACHE", help="cache that has photographs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = read_config()
    settings = config["prompts"]
    clip = load_clip("micro")
    tokens, context = prompt_tokens(clip, ASSETS), clip.config.context_length
    token_ids = prompt_ids(tokens, length=settings["length"], context_length=context)
    seed, share = settings["data_seed"], config["photographs"]["share"]
    scenes, trained_on = Mixture(seed, config["data"]["objects"]), _SURFACES
    if options.photographs:
        trained_on += _PHOTOGRAPHS
        scenes = Mixture(seed, config["photographs"]["objects"], share, options.photographs / ALBUM)
    features = frozen_features(clip, settings, scenes)
    learn(clip, features, token_ids, settings, trained_on=trained_on).save(ASSETS / "prompts.safetensors")


if __name__ == "__main__":
    run(main)
