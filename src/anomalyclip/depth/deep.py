"""An image with more than 8 bits per channel, and how it becomes one of 8 bits."""

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
    within : (float, float), optional
        The lowest and the highest value of the volume that this is a slice of. None: of the image itself.

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
    within: Range | None = None

    def __post_init__(self) -> None:
        if self.values.size == 0:
            raise ValueError("no pixels")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.values.shape[1], self.values.shape[0]

    def assumed(self, *, name: str) -> Range:
        """Return a range guessed from the brightest pixel of the image, or of its volume.

        It is the smallest of 8, 10, 12, 14 and 16 bits that holds it, or [0, 1] for floats that are all within [0, 1].

        Raises
        ------
        InputError
            Values are negative, above 65535 or not finite.
        """
        low, high = self.within or limits(self.values)
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
        if not all(map(math.isfinite, limits(self.values))):
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


def limits(values: NDArray[Any]) -> Range:
    """Return the lowest and the highest value; NaN if there is one."""
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
