"""Counts float32 values in narrow bins: gives quantiles, and ranges of values that fit into memory.

The bits of a float32, with the order of negative values corrected, are an integer that increases with the value.
Counting values by the upper bits of that integer gives bins that are narrow everywhere (at most 1/4096 of the value)
for maps of any scale, in memory that does not depend on the number of values.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BITS = 21
"""Upper bits that number the bins: sign, exponent and 12 bits of the fraction. Two million counters, 16 MB."""

_SHIFT = 32 - BITS


def bins(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bin of each value, 0 to ``2**BITS - 1``, increasing with the value.

    Examples
    --------
    >>> a, b, c = bins(np.array([-0.5, 0.25, 0.2501], np.float32))
    >>> bool(a < b < c)
    True
    """
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0: both zeros share a bin
    return (bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))) >> np.uint32(_SHIFT)


def lowest(index: int) -> np.float32:
    """Return the lowest value of a bin."""
    key = np.uint32(index << _SHIFT)
    bits = key ^ (np.uint32(0x80000000) if key >> 31 else np.uint32(0xFFFFFFFF))
    return np.float32(np.array(bits, np.uint32).view(np.float32))


class Counts:
    """The number of values in each bin.

    Examples
    --------
    >>> counts = Counts()
    >>> counts.add(np.linspace(0, 1, 1001, dtype=np.float32))
    >>> counts.total, round(float(counts.threshold(0.01)), 3)
    (1001, 0.99)
    """

    def __init__(self) -> None:
        self.of = np.zeros(1 << BITS, np.int64)

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.of.sum())

    def add(self, values: NDArray[np.float32], weight: int = 1) -> None:
        """Count finite values of any shape, each `weight` times."""
        found = bins(values.ravel())
        low = int(found.min(initial=(1 << BITS) - 1))
        counts = np.bincount(found - np.uint32(low))
        self.of[low : low + counts.size] += weight * counts

    def threshold(self, share: float) -> np.float32:
        """Return the lowest bin edge for which at most this share of the values is at or above it."""
        at_or_above = np.append(np.cumsum(self.of[::-1])[::-1], 0)
        index = int(np.argmax(at_or_above <= share * self.total))
        return lowest(index) if index < self.of.size else np.float32(np.inf)

    def at_or_above(self, edge: np.float32) -> int:
        """Return how many values are at or above an edge that `threshold` returned."""
        return int(self.of[int(bins(np.array([edge]))[0]) :].sum()) if np.isfinite(edge) else 0

    def ranges(self, capacity: int) -> Iterator[tuple[np.float32, np.float32]]:
        """Yield ranges ``low <= value < high`` that cover all values, highest first.

        Each holds at most `capacity` counts, unless a single bin holds more.
        """
        high, end = np.float32(np.inf), self.of.size
        filled = np.flatnonzero(self.of)
        held = 0
        for index in filled[::-1]:
            if held and held + self.of[index] > capacity:
                edge = lowest(end)
                yield edge, high
                high, held = edge, 0
            held += int(self.of[index])
            end = int(index)
        yield np.float32(-np.inf), high
