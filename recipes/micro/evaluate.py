"""How well the embedded backbone detects on families that it never saw, and what its parts add.

    python -m recipes.micro.evaluate               # generated images, seeds fixed
    python -m recipes.micro.evaluate --root DIR    # a data set in MVTec AD's layout

Image AUROC, pixel AUROC and pixel AP, in percent, by class: hand-written prompts ("object." and "damaged object.")
without and with the local path, learned prompts, and two controls that know nothing of defects: the distance from the
centre and a local-contrast filter. Of generated classes several products are made; metrics are computed for each
product, as one inspects one product, and averaged.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from recipes.micro import ASSETS, read_config
from scipy.ndimage import gaussian_filter

from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.data.synthetic import DEFECTS, HELD_OUT_OBJECTS, HELD_OUT_SURFACES, generate
from anomalyclip.images import SUFFIXES, open_image, read_mask, squash
from anomalyclip.loading import load_clip
from anomalyclip.metrics import auroc, average_precision
from anomalyclip.prompts import Prompts, load_prompts
from anomalyclip.scorer import TorchScorer, default_image_size

COLUMNS = ("hand, plain path", "hand, local path", "learned", "centre", "contrast")


@dataclass(frozen=True)
class Product:
    """Images of one product, with labels and masks."""

    group: str
    name: str
    images: NDArray[np.uint8]  # N S S 3
    masks: NDArray[np.bool_]  # N S S
    labels: NDArray[np.int64]  # N


def resize_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Resize by the published rule: bilinear, at least half defect."""
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR)) > 127


def generated(size: int) -> Iterator[Product]:
    """Draw fresh images of the held-out families, all kinds of defects, seeds fixed by the configuration."""
    settings = read_config()["evaluation"]
    kinds, seed = list(DEFECTS), settings["seed"]
    for group, families in (("surfaces", HELD_OUT_SURFACES), ("objects", HELD_OUT_OBJECTS)):
        for name in families:
            for style in range(seed, seed + settings["styles"]):
                images, masks, labels = [], [], []
                for index in range(settings["normal"] + settings["anomalous"]):
                    number = index - settings["normal"] + (style - seed) * settings["anomalous"]
                    defect = kinds[number % len(kinds)] if index >= settings["normal"] else None
                    sample = generate(name, seed=style, index=index, defect=defect, style=style)
                    images.append(squash(Image.fromarray(sample.image), size))
                    masks.append(resize_mask(sample.mask, size))
                    labels.append(int(defect is not None))
                yield Product(group, name, np.stack(images), np.stack(masks), np.array(labels))


def from_folder(root: Path, size: int) -> Iterator[Product]:
    """Read the test images of a data set in MVTec AD's layout."""
    for folder in sorted(path for path in root.iterdir() if (path / "test").is_dir()):
        files = sorted(p for p in (folder / "test").glob("*/*") if p.suffix.lower() in SUFFIXES)
        masks = []
        for file in files:
            found = sorted((folder / "ground_truth" / file.parent.name).glob(f"{file.stem}_mask.*"))
            masks.append(read_mask(found[0], size) if found else np.zeros((size, size), np.bool_))
        labels = np.array([int(file.parent.name != "good") for file in files])
        yield Product(
            "classes",
            folder.name,
            np.stack([squash(open_image(f), size) for f in files]),
            np.stack(masks),
            labels,
        )


def local_contrast(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the standard deviation of brightness within a Gaussian window of 4 pixels."""
    grey = image.mean(2, dtype=np.float32)
    mean = gaussian_filter(grey, 4)
    return np.sqrt(np.maximum(gaussian_filter(grey * grey, 4) - mean * mean, 0))


def controls(images: NDArray[np.uint8]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return scores and maps that know nothing: nearness to the centre, local contrast."""
    size = images.shape[1]
    y, x = np.indices((size, size)) - (size - 1) / 2
    centre = np.broadcast_to(-np.hypot(x, y), images.shape[:3]).astype(np.float32)
    contrast = np.stack([local_contrast(image) for image in images])
    return [(maps.max((1, 2)), maps) for maps in (centre, contrast)]


def scorers() -> list[TorchScorer]:
    """Return the three ways to use the backbone; the text tower is loaded anew for each, since a scorer lets it go."""
    config = load_clip("micro").config
    ids = Tokenizer(ASSETS / "tokenizer.json", context_length=config.context_length)(
        ["object.", "damaged object."]
    )
    handwritten = Prompts.handwritten(ids, width=config.text_width)
    learned = load_prompts(ASSETS / "prompts.safetensors")
    ways = ((handwritten, 0), (handwritten, None), (learned, None))
    return [TorchScorer(load_clip("micro"), prompts, dpam_layers=layers) for prompts, layers in ways]


def measure(product: Product, ways: list[TorchScorer]) -> NDArray[np.float64]:
    """Return (columns, 3): image AUROC, pixel AUROC, pixel AP."""
    found = [way(product.images) for way in ways] + controls(product.images)
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
    """Print image AUROC / pixel AUROC / pixel AP in percent, one class a line, and their mean."""
    width = max(len(name) for name in (*rows, title, "mean")) + 2
    print("\n" + title.ljust(width) + "".join(column.rjust(22) for column in COLUMNS))
    for name, values in (rows | {"mean": np.mean(list(rows.values()), axis=0)}).items():
        cells = ("  ".join(f"{100 * value:5.1f}" for value in way).rjust(22) for way in values)
        print(name.ljust(width) + "".join(cells))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, help="a data set in MVTec AD's layout instead of generated images"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ways = scorers()
    size = default_image_size(ways[0].config)
    groups: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for product in from_folder(arguments.root, size) if arguments.root else generated(size):
        groups.setdefault(product.group, {}).setdefault(product.name, []).append(measure(product, ways))
    tables = {group: {name: np.mean(v, axis=0) for name, v in rows.items()} for group, rows in groups.items()}
    print("image AUROC, pixel AUROC, pixel AP (percent)")
    for group, rows in tables.items():
        print_table(group, rows)
    if arguments.json:
        figures = {
            g: {n: dict(zip(COLUMNS, v.round(4).tolist(), strict=True)) for n, v in r.items()}
            for g, r in tables.items()
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
