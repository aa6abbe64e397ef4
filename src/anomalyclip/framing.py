"""How an image becomes the model's input: squashed to a square, or in its own proportions."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.errors import InputError

LONGEST = 8
"""How many times as long as the short side the long side of an image may be that keeps its proportions."""


@dataclass(frozen=True)
class Framing:
    """What a model's input looks like.

    Parameters
    ----------
    side : int
        Side S in pixels.
    patch : int, optional
        Images keep their proportions: the short side becomes S, the long side the nearest multiple of this number.
        None: images are squashed to S x S.
    only : (int, int), optional
        Rows and columns of the only input that the model takes; images of other proportions are refused.

    Examples
    --------
    >>> Framing(448).shape((1024, 768)), Framing(448, patch=14).shape((1024, 768))
    ((448, 448), (448, 602))
    """

    side: int
    patch: int | None = None
    only: tuple[int, int] | None = None

    def shape(self, size: tuple[int, int], *, name: str = "image") -> tuple[int, int]:
        """Return the rows and columns that an image of (width, height) pixels becomes.

        Raises
        ------
        InputError
            The image is too long for its width, or not of the shape that the model takes.
        """
        width, height = size
        short, long = min(size), max(size)
        if self.patch is None:
            return self.side, self.side
        if long > LONGEST * short:
            raise InputError(
                f"{name}: {width} x {height} pixels, one side more than {LONGEST} times as long as the other, and "
                "this method keeps proportions; crop it, or cut it into tiles (--tile)"
            )
        other = max(round(long / short * self.side / self.patch), 1) * self.patch
        found = (self.side, other) if height == short else (other, self.side)
        if self.only not in (None, found):
            raise InputError(
                f"{name}: {width} x {height} pixels become {found[1]} x {found[0]}, and this exported file takes "
                f"{self.only[1]} x {self.only[0]} alone; export it from references with the proportions of the images"
            )
        return found

    def __call__(self, image: Image.Image, *, name: str = "image") -> NDArray[np.uint8]:
        """Return an image as (rows, columns, 3) uint8 RGB (in the published order: resize, then RGB).

        Examples
        --------
        >>> Framing(2)(Image.new("L", (640, 480), 7)).tolist()
        [[[7, 7, 7], [7, 7, 7]], [[7, 7, 7], [7, 7, 7]]]
        """
        rows, columns = self.shape(image.size, name=name)
        return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC).convert("RGB"))

    @property
    def blank(self) -> tuple[int, int]:
        """Rows and columns of an input that the model always takes."""
        return self.only or (self.side, self.side)


def framing_of(scorer: Any) -> Framing:
    """Return how images become the input of a scorer: its `framing` if it has one, else squashed to its size."""
    framing = getattr(scorer, "framing", None)
    return framing if isinstance(framing, Framing) else Framing(scorer.image_size)


def alike(shapes: Sequence[Hashable]) -> list[list[int]]:
    """Return which images can be a batch: their indices, by shape, in the order in which shapes occur.

    Examples
    --------
    >>> alike([(4, 4), (4, 6), (4, 4)])
    [[0, 2], [1]]
    """
    groups: dict[Hashable, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return list(groups.values())
