"""Masks as Label Studio's brush draws them: runs of RGBA values in a stream of bits.

The form is that of the package ``rle-pack`` of thi.ng/umbrella, which Label Studio uses: 32 bits for the number of
values, 5 for the size of a value, 4 for each of four sizes of lengths; then for each run one bit that says it is one,
two that say which size its length has, the length, and the value.
"""

import numpy as np
from numpy.typing import NDArray

_SIZES = (3, 4, 8, 16)
"""Bits of a run's length, which is stored less one."""
_VALUE = 8
_CHANNELS = 4


def brush(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask as the bytes of a brush's picture.

    Parameters
    ----------
    mask : ndarray of bool, shape (height, width)

    Returns
    -------
    list of int
        From 0 to 255.

    Examples
    --------
    >>> brush(np.ones((1, 2), bool))
    [0, 0, 0, 8, 57, 27, 252, 255, 224]
    """
    flat = mask.ravel()
    edges = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]))
    bits = [f"{flat.size * _CHANNELS:032b}", f"{_VALUE - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        bits += _run((end - start) * _CHANNELS, "1" * _VALUE if flat[start] else "0" * _VALUE)
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _run(length: int, value: str) -> list[str]:
    """Return the bits of a run; one that is longer than the largest size becomes several."""
    bits = []
    while length:
        part = min(length, 1 << _SIZES[-1])
        index = next(index for index, size in enumerate(_SIZES) if part <= 1 << size)
        bits += ["1", f"{index:02b}", f"{part - 1:0{_SIZES[index]}b}", value]
        length -= part
    return bits
