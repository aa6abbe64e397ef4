"""Masks as Label Studio draws them."""

import hashlib

import numpy as np

from anomalyclip.serve.brush import brush


def decoded(rle: list[int]) -> np.ndarray:
    """What the decoder of thi.ng/rle-pack makes of it, written from the description of its format."""
    bits = np.unpackbits(np.array(rle, np.uint8)).tolist()
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int("".join(map(str, bits[at - count : at])), 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if is_run else [read(word) for _ in range(length)]
    return np.array(values, np.uint8)


def test_a_mask_is_written_as_label_studio_s_own_package_writes_it():
    y, x = np.mgrid[:90, :160]
    mask = ((x - 70) ** 2 + (y - 40) ** 2 < 900) | ((x > 120) & (y > 60) & (x % 3 > 0))
    rle = brush(mask)
    # label_studio_sdk 2.1.2, converter.brush.mask2rle of the same mask
    assert (
        hashlib.sha256(bytes(rle)).hexdigest()
        == "349556dbefa8685393cf7a0717ad540ec28ce8c27cdcb9eebc60295af425583d"
    )
    assert (decoded(rle).reshape(90, 160, 4) == 255 * mask[:, :, None]).all()
