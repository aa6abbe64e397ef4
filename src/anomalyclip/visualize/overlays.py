"""The photograph with the anomaly map over it."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageDraw

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import as_image
from anomalyclip.prediction import Prediction, resized
from anomalyclip.visualize.colors import Colors, Scale

# Line widths as shares of the geometric mean of width and height (2 pixels at 600 x 430), so that lines look the same
# at every size and shape.
_LINE, _CASING = 0.004, 0.0075  # the white line, and the dark one under it
# Contours are computed on a canvas whose longer side has this length, then scaled: smooth on small pictures, fast on
# large ones.
_CONTOUR_SIDE = 1024
_COLUMNS = 256
"""Columns that are coloured at once: a picture may have a hundred million pixels."""


def overlay(
    image: Image.Image,
    prediction: Prediction,
    *,
    colormap: str = "inferno",
    alpha: float = 0.7,
    scale: Scale | None = None,
    contour: bool = True,
    boxes: bool = False,
) -> Image.Image:
    """Return the photograph with the anomaly map drawn over it.

    The higher the map value, the more opaque the colour. With a pixel threshold, exactly the anomalous pixels are
    coloured, so that colour and contour agree. Without one, or with a `scale`, the photograph's pixels are unchanged
    where the map is in the lowest tenth of the scale.

    Parameters
    ----------
    image : PIL.Image.Image
        The image that was scored, in any mode and at any size (a smaller copy is faster to draw).
    prediction : Prediction
        Its prediction.
    colormap : {"inferno", "turbo", "gray"}
        As for `heat_map`.
    alpha : float
        Opacity of the strongest colours, in [0, 1].
    scale : tuple of float, optional
        The map values of the first and the last colour. None: from the prediction's pixel threshold, or 0 without one,
        to 1.
    contour, boxes : bool
        Whether to outline the mask and to draw boxes around the regions; both need a pixel threshold.

    Returns
    -------
    PIL.Image.Image
        RGB, with the image's size.

    Raises
    ------
    AnomalyCLIPError
        If the colour map is unknown, the scale is not increasing, or alpha is outside [0, 1].

    Examples
    --------
    >>> prediction = Prediction(pred_score=0.1, anomaly_map=np.zeros((8, 8), np.float32), image_size=(40, 30))
    >>> photograph = Image.new("RGB", (40, 30), "tan")
    >>> overlay(photograph, prediction).tobytes() == photograph.tobytes()
    True
    """
    photograph = as_image(image)
    picture = Image.new("RGB", photograph.size)
    colors = Colors.of(prediction, colormap, alpha, scale)
    draw_over(picture, photograph, prediction, colors, contour=contour, boxes=boxes)
    return picture


def draw_over(
    canvas: Image.Image,
    photograph: Image.Image,
    prediction: Prediction,
    colors: Colors,
    *,
    contour: bool,
    boxes: bool,
    left: int = 0,
) -> None:
    """Draw an overlay on a canvas, from its top and `left` on; see `overlay`.

    Parameters
    ----------
    canvas : PIL.Image.Image
        RGB, with room for the photograph.
    photograph, prediction, colors, contour, boxes
        As for `overlay`; the photograph stands upright.
    left : int
        Columns of the canvas before the photograph.
    """
    if not 0 <= colors.alpha <= 1:
        raise AnomalyCLIPError(
            f"alpha is {colors.alpha}; expected a number from 0 (photograph only) to 1 (colour only)."
        )
    _color(canvas, left, photograph, prediction, colors)
    if contour:
        _draw_contour(canvas, left, photograph.size, prediction)
    if boxes:
        inside = canvas.crop((left, 0, left + photograph.width, photograph.height))
        _draw_boxes(inside, prediction)
        canvas.paste(inside, (left, 0))


def _color(
    canvas: Image.Image, left: int, photograph: Image.Image, prediction: Prediction, colors: Colors
) -> None:
    """Draw the photograph under the colours of the map, in blocks of columns that the cores share.

    Pillow enlarges first across, then down, so a block of columns has exactly the values of the whole enlarged map.
    """
    width, height = photograph.size
    across = resized(prediction.anomaly_map, (width, len(prediction.anomaly_map)))

    def draw(start: int) -> None:
        stop = min(start + _COLUMNS, width)
        values = resized(np.asarray(across.crop((start, 0, stop, across.height))), (stop - start, height))
        layer = colors.layer(colors.levels(np.asarray(values).clip(0, 1)))
        below = photograph.crop((start, 0, stop, height)).convert("RGB")
        below.paste(layer, mask=layer)
        canvas.paste(below, (left + start, 0))

    blocks = range(0, width, _COLUMNS)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, len(blocks))) as pool:
        for _ in pool.map(draw, blocks):  # raises what a block raised
            pass


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return `size` scaled so that its longer side is `longest`, with the same proportions."""
    width, height = (max(1, round(length * longest / max(size))) for length in size)
    return width, height


def _draw_contour(canvas: Image.Image, left: int, size: tuple[int, int], prediction: Prediction) -> None:
    """Outline the mask in white on a wider dark line, so that it is visible on any background."""
    mask = prediction.mask_at(fitted(size, _CONTOUR_SIDE))
    if mask is None or mask.all() or not mask.any():
        return
    from scipy import ndimage  # imported here because it takes longer than all other imports together

    # Distance of a pixel's centre from the nearest edge between inside and outside.
    distance = (
        np.where(mask, ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)) - 0.5
    )
    # At least one pixel of the picture: otherwise lines on small pictures fade when they are scaled down.
    finest = _CONTOUR_SIDE / max(size)
    for width, color, opacity in ((_CASING, "black", 0.55), (_LINE, "white", 1.0)):
        coverage = np.clip(max(width * math.sqrt(mask.size), finest) / 2 + 0.5 - distance, 0, 1)
        stencil = Image.fromarray(np.rint(255 * opacity * coverage).astype(np.uint8))
        canvas.paste(color, (left, 0), stencil.resize(size, Image.Resampling.BILINEAR))


def _draw_boxes(picture: Image.Image, prediction: Prediction) -> None:
    draw = ImageDraw.Draw(picture)
    scale_x, scale_y = (drawn / own for drawn, own in zip(picture.size, prediction.image_size, strict=True))
    width = max(1, round(0.75 * _LINE * math.sqrt(picture.width * picture.height)))
    for region in prediction.regions:
        x0, y0, x1, y1 = region.box
        corner = round(x0 * scale_x), round(y0 * scale_y)
        # Pillow's rectangles include their last pixel; the last pixel of a box is one before its x1 and y1.
        opposite = (max(corner[0], round(x1 * scale_x) - 1), max(corner[1], round(y1 * scale_y) - 1))
        draw.rectangle((*corner, *opposite), outline="black", width=2 * width)
        draw.rectangle((*corner, *opposite), outline="white", width=width)
