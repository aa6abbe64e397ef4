"""Predictions as pictures: heat maps, overlays on the image, contact sheets.

A colour stands for the same map value in every picture: the scale is fixed, [0, 1] by default. The published
code stretches each map to its own minimum and maximum, so that a flawless image looks as hot as a defective
one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import as_image
from anomalyclip.prediction import Prediction

Color = tuple[int, int, int]
Scale = tuple[float, float]

# Interpolated between nine equidistant control points, which follow matplotlib's inferno (Smith, van der Walt; CC0:
# lightness rises evenly) and Google's turbo (Mikhailov; Apache-2.0: more distinct colours, but lightness rises
# and falls).
_COLORMAPS: dict[str, list[Color]] = {
    "inferno": [
        (0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84),
        (228, 90, 49), (249, 142, 9), (249, 203, 53), (252, 255, 164),
    ],
    "turbo": [
        (48, 18, 59), (70, 107, 227), (40, 188, 235), (50, 242, 152), (164, 252, 60),
        (238, 207, 58), (251, 126, 33), (208, 47, 5), (122, 4, 3),
    ],
    "gray": [(0, 0, 0), (255, 255, 255)],
}  # fmt: skip
COLORMAPS = tuple(_COLORMAPS)

# Up to the first share of the scale the photograph is unchanged; from the second on, the colour has its full opacity
# (`alpha`).
_OPACITY_FROM, _OPACITY_TO = 0.1, 0.7
# Line widths as shares of the geometric mean of width and height (2 pixels at 600 x 430), so that lines look the same
# at every size and shape.
_LINE, _CASING = 0.004, 0.0075  # the white line, and the dark one under it
# Contours are computed on a canvas whose longer side has this length, then scaled: smooth on small pictures, fast on
# large ones.
_CONTOUR_SIDE = 1024
_STRIP = 256  # rows that are coloured at once: a map may have a hundred million pixels


def heat_map(
    anomaly_map: NDArray[np.float32], *, colormap: str = "inferno", scale: Scale = (0.0, 1.0)
) -> Image.Image:
    """Return an anomaly map as a colour image.

    Parameters
    ----------
    anomaly_map : ndarray of float32, shape (H, W)
        Values in [0, 1]; `Prediction.map_at` gives it at any size.
    colormap : {"inferno", "turbo", "gray"}
        From dark to light, a rainbow, or from black to white.
    scale : tuple of float
        The map values of the first and the last colour. Use the same scale for all images that are compared.
        Values outside it get the colour of the nearest end. Narrow it if a model's values use only a part of
        [0, 1].

    Returns
    -------
    PIL.Image.Image
        RGB, with the map's size.

    Raises
    ------
    AnomalyCLIPError
        If the colour map is unknown or the scale is not increasing.

    Examples
    --------
    >>> picture = heat_map(np.array([[0, 1]], np.float32), colormap="gray")
    >>> picture.getpixel((0, 0)), picture.getpixel((1, 0))
    ((0, 0, 0), (255, 255, 255))
    """
    return _colored(_levels(anomaly_map, scale), colormap)


def overlay(
    image: Image.Image,
    prediction: Prediction,
    *,
    colormap: str = "inferno",
    alpha: float = 0.7,
    scale: Scale = (0.0, 1.0),
    contour: bool = True,
    boxes: bool = False,
) -> Image.Image:
    """Return the photograph with the anomaly map drawn over it.

    The higher the map value, the more opaque the colour. Where the map is in the lowest tenth of the scale, the
    photograph's pixels are unchanged.

    Parameters
    ----------
    image : PIL.Image.Image
        The image that was scored, in any mode and at any size (a smaller copy is faster to draw).
    prediction : Prediction
        Its prediction.
    colormap, scale
        As for `heat_map`.
    alpha : float
        Opacity of the strongest colours, in [0, 1].
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
    if not 0 <= alpha <= 1:
        raise AnomalyCLIPError(
            f"alpha is {alpha}; expected a number from 0 (photograph only) to 1 (colour only)."
        )
    photograph = as_image(image)
    levels = _levels(prediction.map_at(photograph.size), scale)
    covered = np.clip((np.linspace(0, 1, 256) - _OPACITY_FROM) / (_OPACITY_TO - _OPACITY_FROM), 0, 1)
    opacity = [round(255 * alpha * share) for share in covered]
    picture = Image.new("RGB", photograph.size)
    for top in range(0, photograph.height, _STRIP):
        strip = (0, top, photograph.width, min(top + _STRIP, photograph.height))
        values = levels.crop(strip)
        colors = _colored(values, colormap)
        below = photograph.crop(strip).convert("RGB")
        picture.paste(Image.composite(colors, below, values.point(opacity)), strip)
    if contour:
        _draw_contour(picture, prediction)
    if boxes:
        _draw_boxes(picture, prediction)
    return picture


def contact_sheet(
    cells: Iterable[tuple[Image.Image, Prediction]],
    *,
    columns: int | None = None,
    tile_size: int = 240,
    beside: bool = True,
    title: str | None = None,
    colormap: str = "inferno",
    alpha: float = 0.7,
    scale: Scale = (0.0, 1.0),
) -> Image.Image:
    """Return many predictions on one page: pictures in a grid with score, verdict and file name.

    Parameters
    ----------
    cells : iterable of (PIL.Image.Image, Prediction)
        Images with their predictions. They are taken one by one, so a generator does not need to hold them all.
    columns : int, optional
        Cells per row; by default, the number that makes the page about 4:3.
    tile_size : int
        Longest side of one picture, in pixels, at least 64.
    beside : bool
        Whether to show the photograph without colours to the left of each overlay.
    title : str, optional
        Heading of the page.
    colormap, alpha, scale
        As for `overlay`.

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    AnomalyCLIPError
        If there is no cell, `columns` is below 1, `tile_size` is below 64, or an option of `overlay` is
        invalid.

    Examples
    --------
    >>> prediction = Prediction(pred_score=0.1, anomaly_map=np.zeros((8, 8), np.float32), image_size=(40, 30))
    >>> sheet = contact_sheet([(Image.new("L", (40, 30)), prediction)] * 6, columns=3, title="Six alike")
    >>> sheet.mode
    'RGB'
    """
    if tile_size < 64 or (columns is not None and columns < 1):
        raise AnomalyCLIPError(
            f"tile_size is {tile_size} and columns is {columns}; expected at least 64 and at least 1."
        )
    tiles = []
    for image, prediction in cells:
        photograph = _photograph(image)
        photograph = photograph.resize(_fitted(photograph.size, tile_size), Image.Resampling.LANCZOS)
        drawn = overlay(photograph, prediction, colormap=colormap, alpha=alpha, scale=scale)
        tiles.append(_Tile([photograph, drawn] if beside else [drawn], prediction))
    if not tiles:
        raise AnomalyCLIPError("a contact sheet needs at least one prediction.")
    return _Page(tiles, columns, tile_size, title).draw(colormap, scale)


def _levels(anomaly_map: NDArray[np.float32], scale: Scale) -> Image.Image:
    """Return the map as a gray picture: 0 at the scale's low end, 255 at its high end."""
    low, high = scale
    if not low < high:
        raise AnomalyCLIPError(
            f"the colour scale is {low} to {high}; its second value must be greater than its first."
        )
    levels = np.empty(anomaly_map.shape, np.uint8)
    for top in range(0, len(levels), _STRIP):
        strip = np.clip((anomaly_map[top : top + _STRIP] - low) / (high - low), 0, 1)
        levels[top : top + _STRIP] = np.rint(255 * strip)
    return Image.fromarray(levels)


def _colored(levels: Image.Image, colormap: str) -> Image.Image:
    if colormap not in _COLORMAPS:
        raise AnomalyCLIPError(f"unknown colour map {colormap!r}; choose one of {', '.join(COLORMAPS)}.")
    points = np.array(_COLORMAPS[colormap])
    positions = np.linspace(0, len(points) - 1, 256)
    channels = [np.interp(positions, range(len(points)), channel).round().astype(int) for channel in points.T]
    return Image.merge("RGB", [levels.point(channel.tolist()) for channel in channels])


def _photograph(image: Image.Image) -> Image.Image:
    """Return the image upright, as 8-bit RGB."""
    image = as_image(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy may take a gigabyte


def _fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return `size` scaled so that its longer side is `longest`, with the same proportions."""
    width, height = (max(1, round(length * longest / max(size))) for length in size)
    return width, height


def _draw_contour(picture: Image.Image, prediction: Prediction) -> None:
    """Outline the mask in white on a wider dark line, so that it is visible on any background."""
    mask = prediction.mask_at(_fitted(picture.size, _CONTOUR_SIDE))
    if mask is None or mask.all() or not mask.any():
        return
    from scipy import ndimage  # imported here because it takes longer than all other imports together

    # Distance of a pixel's centre from the nearest edge between inside and outside.
    distance = (
        np.where(mask, ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)) - 0.5
    )
    # At least one pixel of the picture: otherwise lines on small pictures fade when they are scaled down.
    finest = _CONTOUR_SIDE / max(picture.size)
    for width, color, opacity in ((_CASING, "black", 0.55), (_LINE, "white", 1.0)):
        coverage = np.clip(max(width * math.sqrt(mask.size), finest) / 2 + 0.5 - distance, 0, 1)
        stencil = Image.fromarray(np.rint(255 * opacity * coverage).astype(np.uint8))
        picture.paste(color, (0, 0), stencil.resize(picture.size, Image.Resampling.BILINEAR))


def _draw_boxes(picture: Image.Image, prediction: Prediction) -> None:
    draw = ImageDraw.Draw(picture)
    scale_x, scale_y = (drawn / own for drawn, own in zip(picture.size, prediction.image_size, strict=True))
    width = max(1, round(0.75 * _LINE * math.sqrt(picture.width * picture.height)))
    for region in prediction.regions:
        x0, y0, x1, y1 = region.box
        corner = round(x0 * scale_x), round(y0 * scale_y)
        # Pillow's rectangles include their last pixel; a box ends one before its x1 and y1.
        opposite = (max(corner[0], round(x1 * scale_x) - 1), max(corner[1], round(y1 * scale_y) - 1))
        draw.rectangle((*corner, *opposite), outline="black", width=2 * width)
        draw.rectangle((*corner, *opposite), outline="white", width=width)


_PAPER: Color = (255, 255, 255)
_INK: Color = (32, 33, 36)
_FAINT: Color = (110, 114, 120)
_PANEL: Color = (241, 243, 244)
_ANOMALOUS: Color = (179, 38, 30)
_NORMAL: Color = (24, 110, 58)


@dataclass(frozen=True)
class _Tile:
    """The pictures of one cell and the prediction for its caption."""

    pictures: list[Image.Image]
    prediction: Prediction


class _Page:
    """Layout of a contact sheet: equal cells that fit the largest picture; all lengths depend on the tile size."""

    def __init__(self, tiles: list[_Tile], columns: int | None, tile_size: int, title: str | None) -> None:
        self.tiles, self.title = tiles, title
        self.text = max(11, round(tile_size * 0.065))
        self.gap, self.seam = round(tile_size * 0.09), max(2, tile_size // 80)
        sizes = [picture.size for tile in tiles for picture in tile.pictures]
        self.slot = max(max(width for width, _ in sizes), 9 * self.text), max(height for _, height in sizes)
        pictures = len(tiles[0].pictures)
        self.cell_width = pictures * self.slot[0] + (pictures - 1) * self.seam
        self.cell_height = self.slot[1] + round(3.2 * self.text)
        pitch = (self.cell_height + self.gap) / (self.cell_width + self.gap)
        wanted = columns or max(1, round(math.sqrt(len(tiles) * pitch * 4 / 3)))
        self.columns = min(wanted, len(tiles))
        self.top = self.gap + (round(2.6 * self.text) if title else 0)

    def draw(self, colormap: str, scale: Scale) -> Image.Image:
        rows = math.ceil(len(self.tiles) / self.columns)
        width = self.gap + self.columns * (self.cell_width + self.gap)
        height = self.top + rows * (self.cell_height + self.gap) + 2 * self.text
        page = Image.new("RGB", (width, height), _PAPER)
        if self.title:
            font = ImageFont.load_default(size=1.5 * self.text)
            heading = _shortened(self.title, font, width - 2 * self.gap)
            ImageDraw.Draw(page).text((self.gap, self.gap), heading, _INK, font)
        for index, tile in enumerate(self.tiles):
            row, column = divmod(index, self.columns)
            x = self.gap + column * (self.cell_width + self.gap)
            self._draw_cell(page, x, self.top + row * (self.cell_height + self.gap), tile)
        self._draw_scale(page, colormap, scale)
        return page

    def _draw_cell(self, page: Image.Image, x: int, y: int, tile: _Tile) -> None:
        slot_width, slot_height = self.slot
        for index, picture in enumerate(tile.pictures):
            left = x + index * (slot_width + self.seam)
            page.paste(_PANEL, (left, y, left + slot_width, y + slot_height))
            page.paste(
                picture, (left + (slot_width - picture.width) // 2, y + (slot_height - picture.height) // 2)
            )
        draw, prediction = ImageDraw.Draw(page), tile.prediction
        large, small = ImageFont.load_default(size=1.15 * self.text), ImageFont.load_default(size=self.text)
        baseline = y + slot_height + round(1.55 * self.text)
        score = f"{prediction.pred_score:.3f}"
        draw.text((x, baseline), score, _INK, large, anchor="ls")
        if prediction.pred_label is not None:
            verdict, color = ("anomalous", _ANOMALOUS) if prediction.pred_label else ("normal", _NORMAL)
            draw.text((x + large.getlength(score + "  "), baseline), verdict, color, large, anchor="ls")
        name = _shortened(_name(prediction), small, self.cell_width)
        draw.text((x, baseline + round(1.4 * self.text)), name, _FAINT, small, anchor="ls")

    def _draw_scale(self, page: Image.Image, colormap: str, scale: Scale) -> None:
        """Draw the legend at the bottom right: which colour stands for which map value."""
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=self.text)
        low, high = (f"{value:g}" for value in scale)
        middle = page.height - self.gap - self.text // 2
        right = page.width - self.gap
        draw.text((right, middle), high, _FAINT, font, anchor="rm")
        right -= round(font.getlength(high)) + self.text // 2
        bar = heat_map(np.linspace(0, 1, 6 * self.text, dtype=np.float32)[None], colormap=colormap)
        bar = bar.resize((bar.width, self.text * 2 // 3))
        page.paste(bar, (right - bar.width, middle - bar.height // 2))
        draw.text((right - bar.width - self.text // 2, middle), low, _FAINT, font, anchor="rm")


def _name(prediction: Prediction) -> str:
    """Return folder and file name: in most data sets the file name alone is just a number."""
    return "" if prediction.image_path is None else "/".join(Path(prediction.image_path).parts[-2:])


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return the text, with as much of its middle left out as needed to fit `width` pixels."""
    kept, shown = len(text), text
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = text[: kept // 2] + "..." + text[len(text) - (kept - kept // 2) :]
    return shown
