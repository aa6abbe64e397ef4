"""Time of a training epoch with cached features, and whether memory grows with the number of images.

The weights are random, because neither result depends on their values. A few generated images are encoded; for the
epochs, their feature files are reused for more images (hard links with other names). Run: python benchmarks/training.py
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomalyclip.benchmark import ARCHITECTURES
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.tokenizer import CLIP_TOKENS
from anomalyclip.methods.anomalyclip import assemble
from anomalyclip.prompts import Prompts
from anomalyclip.spec import DetectorSpec
from anomalyclip.training.batches import TrainingData
from anomalyclip.training.features import FeatureStore
from anomalyclip.training.of_prompts import PromptTask
from anomalyclip.training.samples import TrainingImage
from anomalyclip.training.settings import TrainingSettings
from anomalyclip.training.start import prompt_ids
from anomalyclip.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="ViT-L-14-336", choices=ARCHITECTURES)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--encode", type=int, default=3, help="images that are encoded and timed")
    parser.add_argument(
        "--images", type=int, nargs=2, default=(16, 64), help="images per epoch: a few, and many"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    config = ARCHITECTURES[options.architecture]
    clip = CLIP(config).requires_grad_(False).eval()
    ids = prompt_ids(CLIP_TOKENS, length=12, context_length=config.context_length)
    prompts = Prompts.initial(ids, width=config.text_width)
    scorer = assemble(clip, prompts, DetectorSpec(image_size=options.image_size))
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder) / "features", scorer, weights="random", on_damage=print)
        images = [generated(Path(folder), index) for index in range(options.encode)]
        store.encode(images[0].path)  # the first one also allocates
        begin = time.perf_counter()
        store.fill(images, on_error=print)
        encode = (time.perf_counter() - begin) / len(images)
        few, many = (epoch(clip, prompts, store, images, count, Path(folder)) for count in options.images)
    per_image = few["seconds"] / options.images[0]
    whole = encode + 15 * per_image
    report = {
        "architecture": options.architecture,
        "image_size": scorer.image_size,
        "threads": torch.get_num_threads(),
        "encode_seconds_per_image": encode,
        "later_epoch_seconds_per_image": per_image,
        "later_epoch_over_first": per_image / (encode + per_image),
        "fifteen_epochs_over_fifteen_encodings": whole / (15 * (encode + per_image)),
        "feature_bytes_per_image": store.record_bytes,
        "resident_mb_by_images": dict(zip(options.images, (few["mb"], many["mb"]), strict=True)),
    }
    print(json.dumps(report, indent=1))


def generated(folder: Path, index: int) -> TrainingImage:
    """Write a 1024 x 768 image with a mask, a typical size of a photograph."""
    random = np.random.default_rng(index)
    noise = Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((1024, 768))
    mask = np.zeros((768, 1024), np.uint8)
    mask[300:400, 200:500] = 255
    path, mask_path = folder / f"{index}.jpg", folder / f"{index}_mask.png"
    noise.save(path)
    Image.fromarray(mask).save(mask_path)
    return TrainingImage(path, mask_path, "noise", True, f"{index:064x}")


def epoch(
    clip: CLIP, prompts: Prompts, store: FeatureStore, images: list[TrainingImage], count: int, folder: Path
) -> dict[str, float]:
    """Train two epochs on `count` images; return the seconds of the second epoch, and the memory after it."""
    stand_ins = [
        replace(images[index % len(images)], digest=f"{1000 + index:064x}") for index in range(count)
    ]
    for index, image in enumerate(stand_ins):
        target = store.path(image)
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            os.link(store.path(images[index % len(images)]), target)
    moments = []

    def note(record: object) -> None:
        if isinstance(record, dict) and "step" not in record:
            moments.append(time.perf_counter())

    run = folder / f"run-{count}"
    run.mkdir()
    settings = TrainingSettings(epochs=2)
    task = PromptTask(clip, prompts)
    Trainer(task, TrainingData(store, stand_ins), settings, run, info={}, on_record=note).run()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"seconds": moments[1] - moments[0], "mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)}


if __name__ == "__main__":
    main()
