"""Contact sheets: many predictions on one page."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import as_image
from anomalyclip.prediction import Prediction
from anomalyclip.visualize.captions import scale_bar
from anomalyclip.visualize.colors import Color, Colors, Scale
from anomalyclip.visualize.fonts import Font, lettering
from anomalyclip.visualize.overlays import fitted, overlay

_PAPER: Color = (255, 255, 255)
_INK: Color = (32, 33, 36)
_FAINT: Color = (110, 114, 120)
_PANEL: Color = (241, 243, 244)
_ANOMALOUS: Color = (179, 38, 30)
_NORMAL: Color = (24, 110, 58)


def contact_sheet(
    cells: Iterable[tuple[Image.Image, Prediction]],
    *,
    columns: int | None = None,
    tile_size: int = 240,
    beside: bool = True,
    title: str | None = None,
    colormap: str = "inferno",
    alpha: float = 0.7,
    scale: Scale | None = None,
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
    >>> import numpy as np
    >>> prediction = Prediction(pred_score=0.1, anomaly_map=np.zeros((8, 8), np.float32), image_size=(40, 30))
    >>> sheet = contact_sheet([(Image.new("L", (40, 30)), prediction)] * 6, columns=3, title="Six alike")
    >>> sheet.mode
    'RGB'
    """
    if tile_size < 64 or (columns is not None and columns < 1):
        raise AnomalyCLIPError(
            f"tile_size is {tile_size} and columns is {columns}; expected at least 64 and at least 1."
        )
    drawn: list[Cell] = []
    scales: dict[Colors, None] = {}
    for image, prediction in cells:
        photograph = as_image(image)
        photograph = photograph if photograph.mode == "RGB" else photograph.convert("RGB")
        photograph = photograph.resize(fitted(photograph.size, tile_size), Image.Resampling.LANCZOS)
        over = overlay(photograph, prediction, colormap=colormap, alpha=alpha, scale=scale)
        drawn.append(Cell.of([photograph, over] if beside else [over], prediction))
        scales[Colors.of(prediction, colormap, 1.0, scale)] = None
    if not drawn:
        raise AnomalyCLIPError("a contact sheet needs at least one prediction.")
    return sheet_of(
        drawn,
        columns=columns,
        tile_size=tile_size,
        title=title,
        colors=next(iter(scales)) if len(scales) == 1 else None,
    )


@dataclass(frozen=True)
class Cell:
    """The pictures of one cell, side by side, and the content of its caption."""

    pictures: list[Image.Image]
    name: str
    score: float
    label: bool | None

    @classmethod
    def of(cls, pictures: list[Image.Image], prediction: Prediction) -> "Cell":
        """Return the cell of a prediction."""
        return cls(pictures, prediction.image_path or "", prediction.pred_score, prediction.pred_label)


def sheet_of(
    cells: Sequence[Cell],
    *,
    columns: int | None = None,
    tile_size: int = 240,
    title: str | None = None,
    colors: Colors | None = None,
) -> Image.Image:
    """Return a contact sheet of pictures that are already drawn.

    Parameters
    ----------
    cells : sequence of Cell
        At least one.
    columns, tile_size, title
        As for `contact_sheet`.
    colors : Colors, optional
        What the legend shows; None: there is no legend.

    Returns
    -------
    PIL.Image.Image
        RGB.
    """
    return _Page(cells, columns, tile_size, title).draw(colors)


class _Page:
    """Layout of a contact sheet: equal cells that fit the largest picture; all lengths depend on the tile size."""

    def __init__(self, cells: Sequence[Cell], columns: int | None, tile_size: int, title: str | None) -> None:
        self.cells, self.title = cells, title
        self.text = max(11, round(tile_size * 0.065))
        self.gap, self.seam = round(tile_size * 0.09), max(2, tile_size // 80)
        sizes = [picture.size for cell in cells for picture in cell.pictures]
        self.slot = max(max(width for width, _ in sizes), 9 * self.text), max(height for _, height in sizes)
        pictures = max(len(cell.pictures) for cell in cells)
        self.cell_width = pictures * self.slot[0] + (pictures - 1) * self.seam
        self.cell_height = self.slot[1] + round(3.2 * self.text)
        pitch = (self.cell_height + self.gap) / (self.cell_width + self.gap)
        wanted = columns or max(1, round(math.sqrt(len(cells) * pitch * 4 / 3)))
        self.columns = min(wanted, len(cells))
        self.top = self.gap + (round(2.6 * self.text) if title else 0)

    def draw(self, colors: Colors | None) -> Image.Image:
        rows = math.ceil(len(self.cells) / self.columns)
        width = self.gap + self.columns * (self.cell_width + self.gap)
        height = self.top + rows * (self.cell_height + self.gap) + 2 * self.text
        page = Image.new("RGB", (width, height), _PAPER)
        if self.title:
            heading, font = _shortened(self.title, 1.5 * self.text, width - 2 * self.gap)
            ImageDraw.Draw(page).text((self.gap, self.gap), heading, _INK, font)
        for index, cell in enumerate(self.cells):
            row, column = divmod(index, self.columns)
            x = self.gap + column * (self.cell_width + self.gap)
            self._draw_cell(page, x, self.top + row * (self.cell_height + self.gap), cell)
        if colors is not None:
            self._draw_scale(page, colors)
        return page

    def _draw_cell(self, page: Image.Image, x: int, y: int, cell: Cell) -> None:
        slot_width, slot_height = self.slot
        for index, picture in enumerate(cell.pictures):
            left = x + index * (slot_width + self.seam)
            page.paste(_PANEL, (left, y, left + slot_width, y + slot_height))
            page.paste(
                picture, (left + (slot_width - picture.width) // 2, y + (slot_height - picture.height) // 2)
            )
        draw = ImageDraw.Draw(page)
        large = ImageFont.load_default(size=1.15 * self.text)
        baseline = y + slot_height + round(1.55 * self.text)
        score = f"{cell.score:.3f}"
        draw.text((x, baseline), score, _INK, large, anchor="ls")
        if cell.label is not None:
            verdict, color = ("anomalous", _ANOMALOUS) if cell.label else ("normal", _NORMAL)
            draw.text((x + large.getlength(score + "  "), baseline), verdict, color, large, anchor="ls")
        name, small = _shortened(_short_path(cell.name), self.text, self.cell_width)
        draw.text((x, baseline + round(1.4 * self.text)), name, _FAINT, small, anchor="ls")

    def _draw_scale(self, page: Image.Image, colors: Colors) -> None:
        """Draw the legend at the bottom right: which colour stands for which map value."""
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=self.text)
        low, high = (f"{value:.3g}" for value in colors.scale)
        middle = page.height - self.gap - self.text // 2
        right = page.width - self.gap
        draw.text((right, middle), high, _FAINT, font, anchor="rm")
        right -= round(font.getlength(high)) + self.text // 2
        bar = scale_bar(colors, (6 * self.text, self.text * 2 // 3))
        page.paste(bar, (right - bar.width, middle - bar.height // 2))
        draw.text((right - bar.width - self.text // 2, middle), low, _FAINT, font, anchor="rm")


def _short_path(path: str) -> str:
    """Return folder and file name: in most data sets the file name alone is just a number."""
    return "/".join(Path(path).parts[-2:])


def _shortened(text: str, size: float, width: float) -> tuple[str, Font]:
    """Return the text, with as much of its middle left out as needed to fit `width` pixels, and its font."""
    text, font = lettering(text, size)
    kept, shown = len(text), text
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = text[: kept // 2] + "..." + text[len(text) - (kept - kept // 2) :]
    return shown, font
