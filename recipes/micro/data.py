"""The training images: pairs of one scene without and with its defect, drawn once and stored on disk.

python -m recipes.micro.data CACHE [--photographs FOLDER]

With a folder of photographs, most scenes are made of them: for `recipes.micro.go_on`, which trains the backbone on.
"""

import argparse
import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image
from recipes.micro import photographs, read_config, run
from recipes.micro.album import Album, load_album, read_album, save_album

from anomalyclip.data.synthetic import (
    IMAGE_SIZE,
    TRAINING_DEFECTS,
    TRAINING_OBJECTS,
    TRAINING_SURFACES,
    generate,
)
from anomalyclip.files import replacing

ALBUM = "album"
"""Folder in the cache with small copies of the photographs, from which the workers draw."""

DIGEST = "sha256"
"""File that marks a complete cache: the SHA-256 of images.npy, masks.npy and labels.json, one after the other."""

LEAST_CHANGE = 0.025
"""A defect that changes its pixels by less than this, on average, is invisible and drawn again."""


def choose(seed: int, index: int, objects: float, attempt: int = 0) -> tuple[str, str]:
    """Choose the class and the defect of a scene by its number; all attempts are surfaces, or all are objects.

    The seeds of both random generators have the same length: numpy pads shorter ones with zeros, so ``[seed, index]``
    and ``[seed, index, 0]`` are the same seed, and objects would get two kinds of defects and surfaces all others.
    """
    families = TRAINING_OBJECTS if default_rng([seed, index, 0]).random() < objects else TRAINING_SURFACES
    rng = default_rng([seed, index, 1 + attempt])
    return str(rng.choice(list(families))), str(rng.choice(list(TRAINING_DEFECTS)))


def draw_pair(seed: int, index: int, objects: float) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Return the two images (2, S, S, 3), the mask (S, S), the class and the defect of a scene."""
    for attempt in range(8):
        name, defect = choose(seed, index, objects, attempt)
        sample = generate(name, seed=seed, index=index, defect=defect)
        if sample.mask.any():
            change = (
                np.abs(sample.image[sample.mask].astype(np.float32) - sample.normal[sample.mask]).mean() / 255
            )
            if change > LEAST_CHANGE:
                break
    return np.stack([sample.normal, sample.image]), sample.mask, name, defect


def resized_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Resize a mask by the published rule: bilinear, a pixel is defect if at least half of it is."""
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR)) > 127


@dataclass(frozen=True)
class Mixture:
    """Kinds of scenes: a share of photographs, from an album, and a share of objects among the generated ones."""

    seed: int
    objects: float
    photographs: float = 0.0
    album: Path | None = None


def draw_scene(mixture: Mixture, index: int) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Return the two images (2, S, S, 3), the mask (S, S), the class or category and the defect of a scene."""
    if mixture.album is None or default_rng([mixture.seed, index, 99]).random() >= mixture.photographs:
        return draw_pair(mixture.seed, index, mixture.objects)
    pair = photographs.draw(_album(mixture.album), mixture.seed, index)
    return np.stack([pair.normal, pair.image]), pair.mask, pair.category, pair.defect


@cache
def _album(folder: Path) -> Album:
    return load_album(folder)


def _fill(job: tuple[Path, Mixture, range]) -> list[tuple[str, str]]:
    folder, mixture, numbers = job
    images = np.load(folder / "images.npy", mmap_mode="r+")
    masks = np.load(folder / "masks.npy", mmap_mode="r+")
    labels = []
    for index in numbers:
        images[index], mask, name, defect = draw_scene(mixture, index)
        masks[index] = np.packbits(mask, axis=-1)
        labels.append((name, defect))
    images.flush()
    masks.flush()
    return labels


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw all scenes into the cache."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path)
    parser.add_argument(
        "--photographs", type=Path, help="folder with a subfolder of pictures for each category"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    config = read_config()
    settings = config["photographs"] if options.photographs else config["data"]
    folder, count = options.cache, settings["scenes"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DIGEST).unlink(missing_ok=True)  # the cache is incomplete from now on
    if options.photographs:
        album = read_album(options.photographs)
        save_album(album, folder / ALBUM)
        print(f"{len(album.pictures)} photographs, sha256 {album.digest()}", flush=True)
    shape = (count, 2, IMAGE_SIZE, IMAGE_SIZE, 3)
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, (count, IMAGE_SIZE, IMAGE_SIZE // 8))
    mixture = Mixture(settings["seed"], settings["objects"])
    if options.photographs:
        mixture = replace(mixture, photographs=settings["share"], album=folder / ALBUM)
    jobs = [(folder, mixture, range(at, min(at + 100, count))) for at in range(0, count, 100)]
    labels: list[tuple[str, str]] = []
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for part in pool.imap(_fill, jobs):
            labels += part
            if len(labels) % 1000 == 0:
                print(f"{len(labels)} of {count} scenes", flush=True)
    (folder / "labels.json").write_text(json.dumps(labels))
    digest = hashlib.sha256()
    for name in ("images.npy", "masks.npy", "labels.json"):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    with replacing(folder / DIGEST) as temporary:
        temporary.write_text(digest.hexdigest() + "\n")
    print("sha256 of images.npy, masks.npy and labels.json in this order:", digest.hexdigest())


if __name__ == "__main__":
    run(main)
