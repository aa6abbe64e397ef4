"""Pixels that are not square, as scanners and some videos have them: resampled to true proportions."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def square_size(size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """Return (width, height) with square pixels; the side with the fewer pixels is enlarged.

    Parameters
    ----------
    size : (int, int)
        Width and height in pixels.
    aspect : float
        Height over width of a pixel.

    Raises
    ------
    PIL.Image.DecompressionBombError
        The image would be larger than Pillow allows.

    Examples
    --------
    >>> square_size((100, 50), 2.0), square_size((100, 50), 0.5)
    ((100, 100), (200, 50))
    """
    width, height = size
    if abs(aspect - 1) < 1e-3:
        return width, height
    width, height = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError(f"{width} x {height} pixels once they are square")
    return width, height


def square(values: NDArray[Any], aspect: float) -> NDArray[Any]:
    """Return (H, W) or (H, W, C) values with square pixels, bilinear, float32; square ones are returned themselves."""
    size = values.shape[1], values.shape[0]
    if (wanted := square_size(size, aspect)) == size:
        return values
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize(wanted, Image.Resampling.BILINEAR))
        for channel in (values[..., None] if values.ndim == 2 else values).transpose(2, 0, 1)
    ]
    return channels[0] if values.ndim == 2 else np.dstack(channels)
