"""A set of names in 16 to 24 bytes each, for runs of many millions of images."""

from collections.abc import Callable
from hashlib import blake2b
from pickle import PickleBuffer
from typing import Any

_SIZE = 12
"""Bytes that stand for a name: of 100 million names two share them with a chance of 1 in 10^13."""

_FREE = bytes(_SIZE)
_FULL, _GROWTH = 0.75, 1.5
_FEWEST = 64


class Names:
    """A set of names, which can be asked for but not listed: digests in a hash table with open addressing.

    Examples
    --------
    >>> names = Names()
    >>> names.add("a.png"), names.add("b.png"), names.add("a.png")
    (True, True, False)
    >>> "b.png" in names, "c.png" in names, len(names)
    (True, False, 2)
    """

    def __init__(self) -> None:
        self._slots: Any = bytearray(_FEWEST * _SIZE)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        at = self._place(digest)
        return bool(self._slots[at : at + _SIZE] == digest)

    def add(self, name: str) -> bool:
        """Add a name, and return whether it is new."""
        digest = _digest(name)
        at = self._place(digest)
        if self._slots[at : at + _SIZE] == digest:
            return False
        if not isinstance(self._slots, bytearray):
            self._slots = bytearray(self._slots)  # what is shared is not written
        self._slots[at : at + _SIZE] = digest
        self._count += 1
        if self._count * _SIZE > _FULL * len(self._slots):
            self._grow()
        return True

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., "Names"], tuple[Any, ...]]:
        """Let processes of one machine share the table: Ray keeps what is in a buffer once."""
        slots = PickleBuffer(self._slots) if protocol >= 5 else bytes(self._slots)
        return _restored, (slots, self._count)

    def _place(self, digest: bytes) -> int:
        """Return where a digest is, or the free slot where it belongs."""
        slots, end = self._slots, len(self._slots)
        at = (int.from_bytes(digest[:6], "big") * (end // _SIZE) >> 48) * _SIZE
        while (there := slots[at : at + _SIZE]) != digest and there != _FREE:
            at = (at + _SIZE) % end
        return at

    def _grow(self) -> None:
        old, wanted = self._slots, int(len(self._slots) // _SIZE * _GROWTH)
        self._slots = bytearray(wanted * _SIZE)
        for start in range(0, len(old), _SIZE):
            if (digest := bytes(old[start : start + _SIZE])) != _FREE:
                at = self._place(digest)
                self._slots[at : at + _SIZE] = digest


def _digest(name: str) -> bytes:
    # A line of a run may name any text, such as half a surrogate pair, which is no name of a file.
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_SIZE).digest()


def _restored(slots: Any, count: int) -> Names:
    names = Names()
    names._slots, names._count = memoryview(slots), count
    return names
