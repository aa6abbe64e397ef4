"""Generated images of surfaces and objects, with natural-looking defects and their exact masks.

An image depends only on its class, its seeds and its number: any subset can be generated again, in any order and by
any number of processes, with the same pixels. A scene and its defect use separate random streams, so the same scene can
be generated with and without its defect.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from anomalyclip.data.synthetic.defects import HELD_OUT_DEFECTS, TRAINING_DEFECTS
from anomalyclip.data.synthetic.noise import Brush
from anomalyclip.data.synthetic.objects import HELD_OUT_OBJECTS, TRAINING_OBJECTS
from anomalyclip.data.synthetic.scene import photograph, set_up_camera
from anomalyclip.data.synthetic.surfaces import HELD_OUT_SURFACES, TRAINING_SURFACES
from anomalyclip.errors import AnomalyCLIPError

__all__ = [
    "CLASSES",
    "DEFECTS",
    "HELD_OUT_DEFECTS",
    "HELD_OUT_OBJECTS",
    "HELD_OUT_SURFACES",
    "IMAGE_SIZE",
    "LEAST_SIZE",
    "OBJECTS",
    "SURFACES",
    "TRAINING_DEFECTS",
    "TRAINING_OBJECTS",
    "TRAINING_SURFACES",
    "Sample",
    "generate",
]

SURFACES = TRAINING_SURFACES | HELD_OUT_SURFACES
OBJECTS = TRAINING_OBJECTS | HELD_OUT_OBJECTS
CLASSES = SURFACES | OBJECTS
DEFECTS = TRAINING_DEFECTS | HELD_OUT_DEFECTS

IMAGE_SIZE = 192
"""Default side of a generated image in pixels."""

LEAST_SIZE = 32
"""Smallest side in pixels; in smaller images a scratch would be less than one pixel wide."""

_VISIBLE = 0.045
"""A defect whose mask has a smaller mean change of its pixels counts as invisible and is drawn again."""

_ATTEMPTS = 4
"""Maximum number of attempts to draw a visible defect; after that, the most visible one is used."""


@dataclass(frozen=True)
class Sample:
    """A generated image.

    Parameters
    ----------
    image : ndarray of uint8 (S, S, 3)
        RGB.
    mask : ndarray of bool (S, S)
        True at the pixels of the defect; all False if there is none.
    normal : ndarray of uint8 (S, S, 3)
        The same scene, light and sensor noise without the defect; ``image`` itself if there is none.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    normal: NDArray[np.uint8]


def _stream(*key: int | str) -> Generator:
    """Return a random generator that depends only on the key."""
    return default_rng([zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key])


def generate(
    name: str,
    *,
    seed: int,
    index: int,
    defect: str | None = None,
    style: int | None = None,
    size: int = IMAGE_SIZE,
) -> Sample:
    """Draw one image.

    Parameters
    ----------
    name : str
        Class, a key of `CLASSES`.
    seed, index : int
        Which image, 0 or more; the same pair gives the same pixels.
    defect : str, optional
        Kind of defect, a key of `DEFECTS`; None for a flawless image.
    style : int, optional
        Images of one style look like one product (colour, grain, light), 0 or more; None gives each image its own
        style.
    size : int
        Side in pixels, at least `LEAST_SIZE`. The content scales with it, but the random details change.

    Returns
    -------
    Sample
        With a defect, the mask is never empty.

    Raises
    ------
    AnomalyCLIPError
        If the class or defect is unknown, or a number is below its range.

    Examples
    --------
    >>> sample = generate("leather", seed=1, index=7, defect="scratch", size=64)
    >>> sample.image.shape, sample.image.dtype, bool(sample.mask.any())
    ((64, 64, 3), dtype('uint8'), True)
    """
    if name not in CLASSES:
        raise AnomalyCLIPError(f"unknown class {name!r}; the classes are: {', '.join(sorted(CLASSES))}")
    if defect is not None and defect not in DEFECTS:
        raise AnomalyCLIPError(f"unknown defect {defect!r}; the kinds are: {', '.join(sorted(DEFECTS))}")
    for what, number in (("seed", seed), ("index", index), ("style", style or 0)):
        if number < 0:
            raise AnomalyCLIPError(f"{what} {number}: expected 0 or more")
    if size < LEAST_SIZE:
        raise AnomalyCLIPError(f"size {size}: expected at least {LEAST_SIZE} pixels")
    own = index if style is None else style
    look = _stream("style", name, own, seed if style is None else 0)
    brush = Brush(size, look, _stream("scene", name, seed, index))
    scene = CLASSES[name](brush)
    camera = set_up_camera(brush)
    normal = photograph(scene, camera)
    if defect is None:
        return Sample(normal, np.zeros((size, size), np.bool_), normal)
    best, best_change, attempt = None, -1.0, 0
    while best is None or (best_change <= _VISIBLE and attempt < _ATTEMPTS):
        damaged = scene.copy()
        chance = _stream("defect", name, seed, index, defect, attempt)
        attempt += 1
        mask = DEFECTS[defect](damaged, Brush(size, look, chance))
        if mask.sum() < 12 * (size / IMAGE_SIZE) ** 2:
            continue
        image = photograph(damaged, camera)
        change = np.abs(image[mask].astype(np.float32) - normal[mask]).mean() / 255
        if change > best_change:
            best, best_change = Sample(image, mask, normal), change
    return best
