"""Measure how well the micro backbone detects defects in families it has never seen, and what its parts contribute.

    python -m recipes.micro.evaluate                        # generated images of held-out families, seeds fixed
    python -m recipes.micro.evaluate --families training    # new images of training families, for making decisions
    python -m recipes.micro.evaluate --root DIR             # a data set of a known layout with masks, as MVTec AD's

Image AUROC, pixel AUROC and pixel AP, in percent, by class: hand-written prompts ("object." and "damaged object.")
without and with the local path, another pair of the words that the backbone was trained with, learned prompts, and the
two controls of `anomalyclip test`, which know nothing about defects: nearness to the centre and local contrast. Each
generated class has several products; metrics are computed for each product, as in a real inspection, and averaged.
Decisions about the recipe must only be made by training families and their kinds of defects.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from recipes.micro import ASSETS, read_config, run
from recipes.micro.data import resized_mask

from anomalyclip.clip.backbone import load_clip
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.clip_core import default_image_size
from anomalyclip.data.listing import load_samples
from anomalyclip.data.meta import Sample
from anomalyclip.data.synthetic import (
    DEFECTS,
    HELD_OUT_OBJECTS,
    HELD_OUT_SURFACES,
    TRAINING_DEFECTS,
    TRAINING_OBJECTS,
    TRAINING_SURFACES,
    generate,
)
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.controls import CONTROLS
from anomalyclip.files import replacing
from anomalyclip.images import read_mask, squash
from anomalyclip.methods.anomalyclip import assemble
from anomalyclip.metrics import auroc, average_precision
from anomalyclip.prompts import load_prompts
from anomalyclip.readers import open_image
from anomalyclip.scorer import Scorer
from anomalyclip.spec import DetectorSpec
from anomalyclip.texts import Phrases, Texts

WORDS = ("object.", "damaged object.")
"""The hand-written pair of prompts that the paper starts from."""

OWN_WORDS = ("flawless object.", "object with a scratch.")
"""A pair in the words of the backbone's training losses, which name the kind of defect in the image."""

COLUMNS = ("words, plain path", "words, local path", "own words", "learned", *CONTROLS)


@dataclass(frozen=True)
class Product:
    """Images of one product, with labels and masks."""

    group: str
    name: str
    images: NDArray[np.uint8]  # N S S 3
    masks: NDArray[np.bool_]  # N S S
    labels: NDArray[np.int64]  # N


def generated(size: int, *, held_out: bool) -> Iterator[Product]:
    """Draw new images, seeds fixed: held-out families with all kinds of defects, or training families with theirs."""
    settings = read_config()["evaluation"]
    if held_out:
        kinds, groups = list(DEFECTS), {"surfaces": HELD_OUT_SURFACES, "objects": HELD_OUT_OBJECTS}
    else:
        kinds, groups = list(TRAINING_DEFECTS), {"surfaces": TRAINING_SURFACES, "objects": TRAINING_OBJECTS}
    seed, styles = settings["seed"], settings["styles"] if held_out else 1
    for group, families in groups.items():
        for name in families:
            for style in range(seed, seed + styles):
                images, masks, labels = [], [], []
                for index in range(settings["normal"] + settings["anomalous"]):
                    number = index - settings["normal"] + (style - seed) * settings["anomalous"]
                    defect = kinds[number % len(kinds)] if index >= settings["normal"] else None
                    sample = generate(name, seed=style, index=index, defect=defect, style=style)
                    images.append(squash(Image.fromarray(sample.image), size))
                    masks.append(resized_mask(sample.mask, size))
                    labels.append(int(defect is not None))
                yield Product(group, name, np.stack(images), np.stack(masks), np.array(labels))


def from_folder(root: Path, size: int) -> Iterator[Product]:
    """Read the test images of a data set."""
    by_class: dict[str, list[Sample]] = {}
    for sample in load_samples(root):
        if not sample.has_mask:
            raise AnomalyCLIPError(f"{root / sample.image}: an anomalous image needs a mask to be measured")
        by_class.setdefault(sample.class_name, []).append(sample)
    for name, samples in by_class.items():
        empty = np.zeros((size, size), np.bool_)
        yield Product(
            "classes",
            name,
            np.stack([squash(open_image(root / sample.image), size) for sample in samples]),
            np.stack([read_mask(root / s.mask, size) if s.mask else empty for s in samples]),
            np.array([int(sample.anomaly) for sample in samples]),
        )


def scorers() -> list[Scorer]:
    """Return one scorer per column; the model is loaded again for each, since a scorer does not keep the text tower."""
    config = load_clip("micro").config
    tokenizer = Tokenizer(ASSETS / "tokenizer.json", context_length=config.context_length)
    words, own_words = (
        Phrases(tokenizer([normal]), tokenizer([abnormal])) for normal, abnormal in (WORDS, OWN_WORDS)
    )
    learned = load_prompts(ASSETS / "prompts.safetensors")
    ways: tuple[tuple[Texts, int | None], ...] = (
        (words, 0),
        (words, None),
        (own_words, None),
        (learned, None),
    )
    models = [assemble(load_clip("micro"), texts, DetectorSpec(dpam_layers=layers)) for texts, layers in ways]
    return [*models, *(control(default_image_size(config)) for control in CONTROLS.values())]


def measure(product: Product, ways: list[Scorer]) -> NDArray[np.float64]:
    """Return (columns, 3): image AUROC, pixel AUROC, pixel AP."""
    found = [way(product.images) for way in ways]
    pixels = product.masks.ravel().astype(np.int64)
    return np.array(
        [
            (
                auroc(product.labels, scores),
                auroc(pixels, maps.ravel()),
                average_precision(pixels, maps.ravel()),
            )
            for scores, maps in found
        ]
    )


def print_table(title: str, rows: dict[str, NDArray[np.float64]]) -> None:
    """Print image AUROC / pixel AUROC / pixel AP in percent, one line per class, and their mean."""
    width = max(len(name) for name in (*rows, title, "mean")) + 2
    print("\n" + title.ljust(width) + "".join(column.rjust(22) for column in COLUMNS))
    for name, values in (rows | {"mean": np.mean(list(rows.values()), axis=0)}).items():
        cells = ("  ".join(f"{100 * value:5.1f}" for value in way).rjust(22) for way in values)
        print(name.ljust(width) + "".join(cells))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--families", choices=["held-out", "training"], default="held-out")
    of.add_argument("--root", type=Path, help="a data set with masks instead of generated images")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    ways = scorers()
    size = ways[0].image_size
    groups: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    held_out = options.families == "held-out"
    for product in from_folder(options.root, size) if options.root else generated(size, held_out=held_out):
        groups.setdefault(product.group, {}).setdefault(product.name, []).append(measure(product, ways))
    tables = {group: {name: np.mean(v, axis=0) for name, v in rows.items()} for group, rows in groups.items()}
    print("image AUROC, pixel AUROC, pixel AP (percent)")
    for group, rows in tables.items():
        print_table(group, rows)
    if options.json:
        figures = {
            g: {n: dict(zip(COLUMNS, v.round(4).tolist(), strict=True)) for n, v in r.items()}
            for g, r in tables.items()
        }
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
