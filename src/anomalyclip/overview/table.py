"""A run as a table for spreadsheets, and as a contact sheet."""

import csv
from pathlib import Path

from PIL import Image

from anomalyclip.files import replacing, writing
from anomalyclip.overview.summary import Summary, records
from anomalyclip.overview.thumbnails import SIDE, halves, path_of
from anomalyclip.visualize.sheet import Cell, sheet_of
from anomalyclip.writers import PREDICTIONS

TABLE, SHEET = "predictions.csv", "sheet.jpg"

_CELLS = 48
"""Images on a contact sheet."""

_COLUMNS = (
    "image_path", "pred_score", "pred_label", "threshold", "pixel_threshold", "width", "height", "regions",
    "largest_region", "map", "heatmap", "mask", "time",
)  # fmt: skip


def write_table(folder: Path) -> None:
    """Write ``predictions.csv``: one row per line of predictions.jsonl, in their order.

    The columns are those of the lines; ``regions`` is their number, ``largest_region`` the area of the largest in
    pixels, ``time`` that of a frame in a video, in seconds. A path that a spreadsheet would take for a formula begins
    with ``./``.

    Raises
    ------
    AnomalyCLIPError
        It cannot be written.
    """
    target = folder / TABLE
    with (
        writing(target),
        replacing(target) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_COLUMNS)
        rows.writerows(records(folder / PREDICTIONS, _row))


def write_sheet(folder: Path, summary: Summary) -> None:
    """Write ``sheet.jpg``: the most anomalous images, each beside its overlay.

    Raises
    ------
    AnomalyCLIPError
        It cannot be written.
    """
    cells: list[Cell] = []
    for entry in summary.top:
        if len(cells) == _CELLS:
            break
        try:
            with Image.open(path_of(folder, entry.image_path), formats=["JPEG"]) as thumbnail:
                pictures = halves(thumbnail)
        except (OSError, ValueError):  # none could be drawn, or somebody changed it
            continue
        cells.append(Cell(pictures, entry.image_path, entry.score, entry.label))
    if not cells:
        return
    some = f"The {len(cells)} most anomalous of {summary.scored:,} images"
    title = some if len(cells) < summary.scored else f"{summary.scored} images, the most anomalous first"
    target = folder / SHEET
    with writing(target), replacing(target) as temporary:
        sheet_of(cells, tile_size=SIDE, title=title).save(temporary, "JPEG", quality=88)


def _row(record: dict[str, object]) -> list[object]:
    files, regions = record["files"], record["regions"]
    if not (isinstance(files, dict) and isinstance(regions, list) and isinstance(record["image_size"], list)):
        raise TypeError("files, regions or image_size is of the wrong type")
    kept = [record[name] for name in _COLUMNS[:5]]
    paths = [files.get(kind) for kind in ("map", "heatmap", "mask")]
    largest = max((region["area"] for region in regions), default=0)
    row = [*kept, *record["image_size"], len(regions), largest, *paths, record.get("time")]
    return [f"./{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value for value in row]
