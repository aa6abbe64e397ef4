"""Whether bfloat16 serves a model on this CPU: it must be faster, and close enough to float32."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyclip.clip.remembered import measured
from anomalyclip.machine import instructions, processor

LARGEST_DIFFERENCE = 0.01
"""Of the score and of every map value, on a generated image."""

_GAIN = 1.1
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}

Score = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From images, (B, H, W, 3) uint8 RGB, to scores and maps."""


def serves(
    exact: Score, half: Score, identity: Callable[[], Mapping[str, Any]], *, size: tuple[int, int]
) -> bool:
    """Tell whether a model should run in bfloat16: scored once in both precisions, and remembered in the cache folder.

    Parameters
    ----------
    exact, half : callable
        The model in float32 and in bfloat16.
    identity : callable
        What determines its scores; called only on processors that have instructions for bfloat16.
    size : (int, int)
        Rows and columns of an image in pixels.

    Returns
    -------
    bool
        Whether bfloat16 is at least a tenth faster, and score and map differ by at most `LARGEST_DIFFERENCE`.
    """
    if not _INSTRUCTIONS & instructions().flags:
        return False
    about = [identity(), size, processor(), torch.get_num_threads(), torch.__version__]
    found: bool = measured("bfloat16", about, "serves", bool, lambda: _compared(exact, half, size))
    return found


def _compared(exact: Score, half: Score, size: tuple[int, int]) -> dict[str, Any]:
    rows, columns = size
    blocks = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    pixels = blocks.repeat(-(-rows // 8), axis=1).repeat(-(-columns // 8), axis=2)[:, :rows, :columns]
    half(pixels)  # the weights are converted
    seconds, results = zip(*(_timed(score, pixels) for score in (exact, half)), strict=True)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(*results, strict=True))
    gain = seconds[0] / seconds[1]
    return {
        "serves": gain > _GAIN and difference <= LARGEST_DIFFERENCE,
        "gain": gain,
        "difference": difference,
    }


def _timed(
    score: Score, pixels: NDArray[np.uint8]
) -> tuple[float, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    start = time.perf_counter()
    result = score(np.ascontiguousarray(pixels))
    return time.perf_counter() - start, result
