"""Photographs for training: a folder of any pictures, one subfolder for each category, as small squares in memory."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_fill_holes, binary_opening, uniform_filter

from anomalyclip.data.synthetic import IMAGE_SIZE
from anomalyclip.errors import AnomalyCLIPError

SUFFIXES = (".jpg", ".jpeg", ".png")

PLAIN = 0.06
"""A picture lies on plain ground if the colours along its border differ by less than this from their median."""

DIFFERENT = 0.10
"""What differs by more than this from the ground belongs to the object."""


@dataclass(frozen=True)
class Album:
    """Photographs, squashed to squares.

    Parameters
    ----------
    pictures : ndarray of uint8 (N, S, S, 3)
        RGB.
    outlines : ndarray of bool (N, S, S)
        Where the object is, for pictures of one on plain ground; all False for others.
    categories : tuple of str
        Category of each picture, in words.
    """

    pictures: NDArray[np.uint8]
    outlines: NDArray[np.bool_]
    categories: tuple[str, ...]

    def digest(self) -> str:
        """Return the SHA-256 of the pixels and categories."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pictures).data)
        digest.update("\n".join(self.categories).encode())
        return digest.hexdigest()


def words(folder_name: str) -> str:
    """Return a folder's name in words, as captions use it.

    Examples
    --------
    >>> words("Soccer_Ball")
    'soccer ball'
    """
    return " ".join(folder_name.lower().replace("-", " ").replace("_", " ").split())


def read_album(root: Path, size: int = IMAGE_SIZE) -> Album:
    """Read all pictures ``<category>/*.jpg``, in alphabetical order.

    Raises
    ------
    AnomalyCLIPError
        There are no pictures, or one cannot be read.
    """
    files = list(_files(root))
    if not files:
        raise AnomalyCLIPError(
            f"{root} has no photographs: expected a folder for each category with JPEG or PNG files, as in Caltech-101"
        )
    with ThreadPoolExecutor(2) as readers:
        pictures = np.stack(list(readers.map(lambda file: _small(file, size), files)))
    outlines = np.stack([outline(picture) for picture in pictures])
    return Album(pictures, outlines, tuple(words(file.parent.name) for file in files))


def outline(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where the object is (S, S), if the picture shows one on plain ground; otherwise all False."""
    small = picture.astype(np.float32) / 255
    border = np.concatenate(
        [small[:3], small[-3:], small[:, :3].swapaxes(0, 1), small[:, -3:].swapaxes(0, 1)], 1
    )
    border = border.reshape(-1, 3)
    ground = np.median(border, 0)
    nothing = np.zeros(picture.shape[:2], np.bool_)
    if np.median(np.abs(border - ground).max(1)) > PLAIN or (
        np.mean(np.abs(border - ground).max(1) < DIFFERENT) < 0.75
    ):
        return nothing
    distance = uniform_filter(np.abs(small - ground).max(2), 3)
    found: NDArray[np.bool_] = binary_opening(binary_fill_holes(distance > DIFFERENT), iterations=2)
    return found if 0.08 < found.mean() < 0.85 else nothing


def save_album(album: Album, folder: Path) -> None:
    """Keep an album for the workers that draw from it."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pictures.npy", album.pictures)
    np.save(folder / "outlines.npy", album.outlines)
    (folder / "categories.json").write_text(json.dumps(album.categories))


def load_album(folder: Path) -> Album:
    """Return a kept album; its pictures stay on disk until they are used."""
    pictures, outlines = (np.load(folder / name, mmap_mode="r") for name in ("pictures.npy", "outlines.npy"))
    return Album(pictures, outlines, tuple(json.loads((folder / "categories.json").read_text())))


def _files(root: Path) -> Iterator[Path]:
    folders: Sequence[Path] = sorted(root.iterdir()) if root.is_dir() else ()
    for folder in folders:
        if folder.is_dir():
            yield from (file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES)


def _small(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            return np.asarray(
                image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2)
            )
    except OSError as error:
        raise AnomalyCLIPError(f"{file} cannot be read as a picture: {error}; remove it") from error
