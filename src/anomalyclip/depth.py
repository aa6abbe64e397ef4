"""Images of more than 8 bits per channel: one scale for all of them, never one for each.

Cameras and scanners give 10 to 16 bits or floats, and the model takes 8. Which value is black and which is white
decides the scores. It comes from the user (`DetectorSpec.value_range`), from the file (a DICOM window), or it is
assumed from the first image of a run, and then all others follow.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.errors import AnomalyCLIPError, InputError

Range = tuple[float, float]
"""The values that become black and white."""

Rendering = Callable[[NDArray[Any]], NDArray[Any]]
"""From rows of values to brightness within [0, 1]."""

_BITS = (8, 10, 12, 14, 16)
_ROWS = 256
"""Number of rows that are converted at once."""

ADVICE = "give --range LOW HIGH, the values that are black and white, or --range-from FOLDER"


@dataclass(frozen=True, eq=False)
class Deep:
    """An image with more than 8 bits per channel, as it is stored.

    Parameters
    ----------
    values : ndarray
        (H, W) gray or (H, W, 3) RGB, of any integer or float type.
    own : (float, float) or callable, optional
        What the file itself says is black and white, or how its values become brightness within [0, 1]. None: it does
        not say.
    inverted : bool
        Whether low values are bright (MONOCHROME1, white is zero).

    Examples
    --------
    >>> deep = Deep(np.array([[0, 2048, 4095]], np.uint16))
    >>> np.asarray(deep.eight_bit((0, 4095), name="a.png")).tolist()
    [[0, 128, 255]]
    >>> deep.assumed(name="a.png")
    (0.0, 4095.0)
    """

    values: NDArray[Any]
    own: Range | Rendering | None = None
    inverted: bool = False

    def __post_init__(self) -> None:
        if self.values.size == 0:
            raise ValueError("no pixels")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.values.shape[1], self.values.shape[0]

    def assumed(self, *, name: str) -> Range:
        """Return a range guessed from the brightest pixel.

        It is the smallest of 8, 10, 12, 14 and 16 bits that holds it, or [0, 1] for floats that are all within [0, 1].

        Raises
        ------
        InputError
            Values are negative, above 65535 or not finite.
        """
        low, high = _limits(self.values)
        if not 0 <= low <= high <= 65535:  # also catches NaN: if there is one, minimum and maximum are NaN
            raise InputError(
                f"{name}: gray values from {low:g} to {high:g}; expected finite values within [0, 65535]: rescale the "
                f"image, or {ADVICE}"
            )
        if self.values.dtype.kind == "f" and high <= 1:
            return 0.0, 1.0
        return 0.0, next(2.0**bits - 1 for bits in _BITS if high <= 2**bits - 1)

    def eight_bit(self, value_range: Range | None = None, *, name: str) -> Image.Image:
        """Return the image as mode L or RGB.

        Parameters
        ----------
        value_range : (float, float), optional
            The values that become black and white; values beyond are black or white too. None: what the file itself
            says, otherwise guessed from this image alone (`assumed`).
        name : str
            Name of the image in error messages.

        Raises
        ------
        InputError
            Values are not finite, or the range cannot be guessed.
        """
        rule = value_range or self.own or self.assumed(name=name)
        if not all(map(math.isfinite, _limits(self.values))):
            raise InputError(f"{name}: values that are NaN or infinite; expected numbers in every pixel")
        shades = np.empty(self.values.shape, np.uint8)
        # Converted all at once, the float64 values would take sixteen times the memory of the result.
        for start in range(0, len(self.values), _ROWS):
            rows = self.values[start : start + _ROWS]
            bright = rule(rows) if callable(rule) else _linear(rows, *rule)
            if self.inverted:
                bright = 1 - bright
            shades[start : start + _ROWS] = np.round(bright * 255)
        return Image.fromarray(shades)


def _limits(values: NDArray[Any]) -> Range:
    return float(values.min()), float(values.max())


def _linear(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


def require_range(value: Any) -> Range | None:
    """Return a range as two floats; None is none.

    Raises
    ------
    AnomalyCLIPError
        It is not two finite numbers, the lower one first.

    Examples
    --------
    >>> require_range([0, 4095])
    (0.0, 4095.0)
    >>> require_range((5, 5))
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: value range (5, 5): expected two finite numbers, the lower one first
    """
    if value is None:
        return None
    try:
        low, high = map(float, value)
    except (TypeError, ValueError, OverflowError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise AnomalyCLIPError(f"value range {value}: expected two finite numbers, the lower one first")
    return low, high


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
    >>> scale = Scale()
    >>> scale.assume(Deep(np.array([[4000]], np.uint16)), name="a.png")
    >>> scale(Deep(np.array([[100, 4095]], np.uint16)), name="b.png")[1]
    (0.0, 4095.0)
    >>> scale(Deep(np.array([[5000]], np.uint16)), name="c.png")
    Traceback (most recent call last):
    anomalyclip.errors.InputError: c.png: values up to 5000, but 0 to 4095 was assumed for all images from a.png: ...
    """

    def __init__(
        self, value_range: Range | None = None, *, assumed: Range | None = None, strict: bool = False
    ) -> None:
        self.value_range, self.assumed, self.strict = value_range, assumed, strict
        self._from = "the earlier part of this run"
        self._images = 0

    def is_open(self, image: Image.Image | Deep) -> bool:
        """Return whether an image has to wait until an earlier one, or it itself, decides the scale."""
        return self.depends(image) and self.assumed is None

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
            low, high = _limits(image.values)
            if not (self.assumed[0] <= low and high <= self.assumed[1]):
                raise InputError(
                    f"{name}: values up to {high:g}, but {self} was assumed for all images from {self._from}: {ADVICE}"
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
