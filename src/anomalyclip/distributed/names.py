"""A set of names in 16 bytes each, for runs of many millions of images."""

import os
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Digests = NDArray[np.bytes_]

_RECENT = 1 << 16


def digests(names: Sequence[str]) -> Digests:
    """Return what stands for each name, (N,) of 16 bytes; 100 million names share one with a chance of 1 in 10^22."""
    return np.array([blake2b(os.fsencode(name), digest_size=16).digest() for name in names], dtype="S16")


class Names:
    """Names that were seen.

    They are kept as sorted arrays, each at least twice as long as the next, so that adding is fast too.

    Examples
    --------
    >>> names = Names()
    >>> names.add(["a.png", "b.png"])
    >>> names.have(["b.png", "c.png"]).tolist(), len(names)
    ([True, False], 2)
    """

    def __init__(self) -> None:
        self._sorted: list[Digests] = []
        self._recent: set[bytes] = set()

    def __len__(self) -> int:
        return sum(map(len, self._sorted)) + len(self._recent)

    def add(self, names: Sequence[str]) -> None:
        """Add names; those that are there stay once."""
        new = digests(names)
        self._recent.update(new[~self._have(new)].tolist())
        if len(self._recent) >= _RECENT:
            self._settle()

    def have(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Return which names are there, (N,)."""
        return self._have(digests(names))

    def _have(self, wanted: Digests) -> NDArray[np.bool_]:
        found = np.fromiter((digest in self._recent for digest in wanted.tolist()), np.bool_, len(wanted))
        for array in self._sorted:
            place = np.searchsorted(array, wanted)
            found |= array[np.minimum(place, len(array) - 1)] == wanted
        return found

    def _settle(self) -> None:
        array = np.sort(np.array(list(self._recent), dtype="S16"))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1]) < 2 * len(array):
            array = np.sort(np.concatenate([self._sorted.pop(), array]), kind="stable")
        self._sorted.append(array)
