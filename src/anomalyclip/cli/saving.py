"""Options of the commands that save predictions: what is saved for each image, and how heat maps are drawn."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.errors import AnomalyCLIPError

if TYPE_CHECKING:
    from anomalyclip.predicting import Results

_DRAWING = "Drawing"


class Saved(str, Enum):
    """What is kept besides the lines in predictions.jsonl and the page."""

    map = "map"
    heatmap = "heatmap"
    mask = "mask"
    csv = "csv"
    sheet = "sheet"
    nifti = "nifti"
    video = "video"


class ColorMap(str, Enum):
    """Colours of the heat maps."""

    inferno = "inferno"
    turbo = "turbo"
    gray = "gray"


Output = Annotated[
    str | None,
    typer.Option(
        help="Folder for the results, or an address such as s3://bucket/run. Default: a new folder in runs/, named "
        "after the command and numbered.",
        show_default=False,
        metavar="FOLDER",
    ),
]

Save = Annotated[
    list[Saved] | None,
    typer.Option(
        help="Also save, for each image: map (float32 .npy), heatmap (overlay with caption, .png), mask (.png, "
        "needs --threshold); for the run: csv (a table), sheet (a contact sheet, .jpg); for each NIfTI volume: "
        "nifti (its maps as one volume; includes map); for each video: video (its frames with the overlay, .webm). "
        "Repeat for several.",
        show_default=False,
    ),
]
Colors = Annotated[ColorMap, typer.Option(help="Colours of the heat maps.", rich_help_panel=_DRAWING)]
Alpha = Annotated[
    float,
    typer.Option(help="Opacity of the strongest colour, 0 to 1.", min=0, max=1, rich_help_panel=_DRAWING),
]
Scale = Annotated[
    tuple[float, float] | None,
    typer.Option(
        help="Map values of the first and the last colour, for example --scale 0.1 0.6. Default: from the pixel "
        "threshold, or 0 without one, to 1.",
        metavar="LOW HIGH",
        show_default=False,
        rich_help_panel=_DRAWING,
    ),
]
NoCaption = Annotated[
    bool,
    typer.Option(
        "--no-caption",
        help="Save heat maps in the size of the photograph, without the caption (score, verdict and threshold).",
        rich_help_panel=_DRAWING,
    ),
]


def results(
    save: list[Saved] | None,
    colormap: ColorMap,
    alpha: float,
    scale: tuple[float, float] | None,
    no_caption: bool,
    *,
    batch_size: int,
    masks: object,
) -> "Results":
    """Return what a run makes of its images; `masks` is whatever brings a threshold.

    Raises
    ------
    AnomalyCLIPError
        The scale is not increasing, or masks are to be saved without a threshold.
    """
    from functools import partial

    from anomalyclip.predicting import Results
    from anomalyclip.visualize import captioned, overlay

    if scale is not None and not 0 <= scale[0] < scale[1] <= 1:
        raise AnomalyCLIPError(
            f"--scale {scale[0]} {scale[1]}: expected two map values, 0 <= first < second <= 1"
        )
    kinds = [kind.value for kind in save or []]
    if "mask" in kinds and masks is None:
        raise AnomalyCLIPError("--save mask needs a threshold: give --threshold 0.5 or a threshold file")
    drawing: dict[str, Any] = {"colormap": colormap.value, "alpha": alpha, "scale": scale}
    draw = partial(overlay if no_caption else captioned, **drawing)
    return Results(kinds, batch_size, draw, partial(overlay, **drawing))
