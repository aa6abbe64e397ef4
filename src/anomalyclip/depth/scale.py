"""One scale for the deep images of a run."""

import copy
import math

from PIL import Image

from anomalyclip.depth.deep import ADVICE, Deep, Range, limits
from anomalyclip.errors import AnomalyCLIPError, InputError


class RangeWanted(AnomalyCLIPError):
    """The range of a run has to be assumed, but not from this image: an earlier one may decide it."""


class Scale:
    """One scale for the deep images of a run: given, each file's own, or assumed from the first image without either.

    Parameters
    ----------
    value_range : (float, float), optional
        Given: it replaces what the files say.
    assumed : (float, float), optional
        What an earlier part of the same run assumed.
    strict : bool
        Refuse images whose range would have to be assumed.

    Examples
    --------
    >>> import numpy as np
    >>> scale = Scale()
    >>> scale.assume(Deep(np.array([[4000]], np.uint16)), name="a.png")
    >>> scale(Deep(np.array([[100, 4095]], np.uint16)), name="b.png")[1]
    (0.0, 4095.0)
    >>> scale(Deep(np.array([[5000]], np.uint16)), name="c.png")
    Traceback (most recent call last):
    anomalyclip.errors.InputError: c.png: values from 5000 to 5000, but 0 to 4095 was assumed for all images ...
    """

    def __init__(
        self, value_range: Range | None = None, *, assumed: Range | None = None, strict: bool = False
    ) -> None:
        self.value_range, self.assumed, self.strict = value_range, assumed, strict
        self._from = "the earlier part of this run"
        self._images = 0
        self._may_assume = True

    def of_a_part(self, *, may_assume: bool) -> "Scale":
        """Return the scale for a part of the images, which another process scores.

        Parameters
        ----------
        may_assume : bool
            Whether the part may decide the scale, since no earlier image has. Otherwise `is_open` raises `RangeWanted`.
        """
        part = copy.copy(self)
        part._may_assume = may_assume
        part._images = 2  # the remark is made once for all parts
        return part

    def take_over(self, part: "Scale") -> None:
        """Assume what a part has assumed."""
        self.assumed, self._from = part.assumed, part._from

    def is_open(self, image: Image.Image | Deep) -> bool:
        """Return whether an image has to wait until an earlier one, or it itself, decides the scale."""
        is_open = self.depends(image) and self.assumed is None
        if is_open and not (self._may_assume or self.strict):
            raise RangeWanted("the range of this run is not known yet")
        return is_open

    def depends(self, image: Image.Image | Deep) -> bool:
        """Return whether the range of an image is an assumption."""
        return isinstance(image, Deep) and self.value_range is None and image.own is None

    def assume(self, image: Deep, *, name: str) -> None:
        """Decide the scale from an image, if no earlier one has.

        Raises
        ------
        InputError
            No range can be guessed from it, or none may be.
        """
        if self.strict:
            raise InputError(f"{name}: has more than 8 bits per channel and does not say its range: {ADVICE}")
        if self.assumed is None:
            self.assumed, self._from = image.assumed(name=name), name

    def __call__(self, image: Image.Image | Deep, *, name: str) -> tuple[Image.Image, Range | None]:
        """Return an image with at most 8 bits per channel, and the range if it is the run's, not the file's own.

        Raises
        ------
        InputError
            The image does not fit the scale.
        """
        if not isinstance(image, Deep):
            return image, None
        if self.depends(image):
            self.assume(image, name=name)
            assert self.assumed is not None
            low, high = limits(image.values)
            if not (self.assumed[0] <= low and high <= self.assumed[1]):
                raise InputError(
                    f"{name}: values from {low:g} to {high:g}, but {self} was assumed for all images from "
                    f"{self._from}: {ADVICE}"
                )
            return image.eight_bit(self.assumed, name=name), self.assumed
        return image.eight_bit(self.value_range, name=name), self.value_range

    def __str__(self) -> str:
        low, high = self.value_range or self.assumed or (math.nan, math.nan)
        return f"{low:g} to {high:g}"

    def is_second(self) -> bool:
        """Count an image that depends on what was assumed; true for the second one."""
        self._images += 1
        return self._images == 2

    def remark(self) -> str:
        """Return what a run of several images says once."""
        return (
            f"images of more than 8 bits are scaled from {self}, which is assumed from {self._from}; to be sure, "
            f"{ADVICE}"
        )
