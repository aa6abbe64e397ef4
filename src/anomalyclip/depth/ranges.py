"""The scale of a camera, measured on normal images: the values between which nearly all of their pixels are."""

import os
from collections.abc import Sequence

import numpy as np

from anomalyclip.decoding import decode
from anomalyclip.depth import Deep, Range
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.inputs import find_images
from anomalyclip.readers import Frame, Source

TAIL = 0.001
"""Share of the pixels that may lie below the range, and above it."""

_PER_IMAGE = 4096
"""Number of values that are taken of each image, evenly spaced: a thousand images are 32 MB."""


def measure_range(images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Range:
    """Return the 0.1 % and 99.9 % quantiles of the values in normal images of more than 8 bits, for `value_range`.

    Parameters
    ----------
    images : path or sequence of paths
        Files, folders and patterns. Images of 8 bits are left out.

    Returns
    -------
    (float, float)

    Raises
    ------
    AnomalyCLIPError
        No image has more than 8 bits, all pixels have the same value, or an image cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> ramp = np.linspace(100, 1100, 1001, dtype=np.uint16).reshape(7, 143)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.fromarray(ramp).save(f"{folder}/a.png")
    ...     measure_range(folder)
    (101.0, 1099.0)
    """
    paths = [images] if isinstance(images, str | os.PathLike) else images
    named = " ".join(os.fspath(path) for path in paths)
    sources = (image.path for image in find_images([os.fspath(path) for path in paths]))
    samples = [sample for sample in decode(sources, _sample) if sample is not None]
    if not samples:
        raise AnomalyCLIPError(f"{named}: no image has more than 8 bits, so there is no range to measure")
    values = np.concatenate(samples)
    if not np.isfinite(values).all():
        raise AnomalyCLIPError(f"{named}: some pixels are NaN or infinite; expected numbers")
    low, high = map(float, np.quantile(values, [TAIL, 1 - TAIL]))
    if low == high:
        raise AnomalyCLIPError(f"{named}: nearly all pixels are {low:g}, so there is no range to measure")
    return low, high


def _sample(source: Source, frame: Frame) -> np.ndarray | None:
    if not isinstance(frame.image, Deep):
        return None
    values = frame.image.values.reshape(-1)
    return values[:: -(-len(values) // _PER_IMAGE)].astype(np.float64)
