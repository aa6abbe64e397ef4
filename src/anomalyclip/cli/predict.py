"""``anomalyclip predict``: score images and draw where they are anomalous."""

import io
import sys
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import stoppable, track
from anomalyclip.cli.prediction_view import name_failures, show
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.inputs import ImageFile
    from anomalyclip.readers import Selection

_DRAWING = "Drawing"


class Saved(str, Enum):
    """What is kept besides the lines in predictions.jsonl and the page."""

    map = "map"
    heatmap = "heatmap"
    mask = "mask"
    csv = "csv"
    sheet = "sheet"
    nifti = "nifti"


class ColorMap(str, Enum):
    """Colours of the heat maps."""

    inferno = "inferno"
    turbo = "turbo"
    gray = "gray"


@options.with_options
def predict(
    context: typer.Context,
    spec: DetectorSpec,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, zip or tar archives, folders (searched recursively) or patterns; - reads paths from "
            "standard input.",
            show_default=False,
        ),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            help="File with one image path per line (UTF-8; no folders, no patterns).",
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    every: options.Every = None,
    axis: options.Axis = None,
    output: options.Output = None,
    save: Annotated[
        list[Saved] | None,
        typer.Option(
            help="Also save, for each image: map (float32 .npy), heatmap (overlay with caption, .png), mask (.png, "
            "needs --threshold); for the run: csv (a table), sheet (a contact sheet, .jpg); for each NIfTI volume: "
            "nifti (its maps as one, and map). Repeat for several.",
            show_default=False,
        ),
    ] = None,
    threshold: options.Threshold = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --output; skip finished images.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again in --output and replace its results.")
    ] = False,
    shard: options.OneShard = None,
    batch_size: options.BatchSize = 1,
    colormap: Annotated[
        ColorMap, typer.Option(help="Colours of the heat maps.", rich_help_panel=_DRAWING)
    ] = ColorMap.inferno,
    alpha: Annotated[
        float,
        typer.Option(help="Opacity of the strongest colour, 0 to 1.", min=0, max=1, rich_help_panel=_DRAWING),
    ] = 0.7,
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Map values of the first and the last colour, for example --scale 0.1 0.6. Default: from the pixel "
            "threshold, or 0 without one, to 1.",
            metavar="LOW HIGH",
            show_default=False,
            rich_help_panel=_DRAWING,
        ),
    ] = None,
    no_caption: Annotated[
        bool,
        typer.Option(
            "--no-caption",
            help="Heat maps without the line that says score, verdict and threshold: of the photograph's size.",
            rich_help_panel=_DRAWING,
        ),
    ] = False,
) -> None:
    """Score images and draw where they are anomalous.

    Every image gets a score from 0 (normal) to 1 (anomalous), printed and written to OUTPUT/predictions.jsonl.
    OUTPUT/index.html shows the most anomalous ones; --save also writes maps, heat maps and masks. Images that cannot be
    read are reported, and the others are scored.
    """
    from functools import partial

    from anomalyclip import predicting
    from anomalyclip.visualize import captioned, overlay

    skipped: Counter[str] = Counter()
    part = options.one_shard(shard)
    images = _images(paths or [], from_file, skipped, options.selection(every, axis), at_once=part is None)
    if scale is not None and not 0 <= scale[0] < scale[1] <= 1:
        raise AnomalyCLIPError(
            f"--scale {scale[0]} {scale[1]}: expected two map values, 0 <= first < second <= 1"
        )
    kinds = [kind.value for kind in save or []]
    if "mask" in kinds and threshold is None and spec.model is None:
        raise AnomalyCLIPError("--save mask needs a threshold: give --threshold 0.5 or a threshold file")
    drawing: dict[str, Any] = {"colormap": colormap.value, "alpha": alpha, "scale": scale}
    folder = predicting.run_folder(output, resume=resume, overwrite=overwrite, shard=part)
    detector = spec.load(threshold=threshold)
    with stoppable(
        lambda: (
            "stopped; results already written are kept, and the same command with --output "
            f"{folder.output if part is None else output} --resume continues"
        )
    ):
        run = predicting.predict(
            detector,
            images,
            folder,
            save=kinds,
            shard=part,
            batch_size=batch_size,
            draw=partial(overlay if no_caption else captioned, **drawing),
            draw_small=partial(overlay, **drawing),
            on_error=name_failures(),
            track=track,
        )
    show(run, skipped)
    if run.failed:
        raise typer.Exit(1)


def _images(
    paths: list[str],
    from_file: Path | None,
    skipped: Counter[str],
    selection: "Selection | None",
    *,
    at_once: bool,
) -> "Iterable[ImageFile]":
    """Return the images: a list where all can be known beforehand, or a stream."""
    from itertools import chain

    from anomalyclip.inputs import read_list, read_list_file
    from anomalyclip.predicting import stream_images

    if "-" in paths or (from_file is not None and str(from_file) == "-"):
        if len(paths) + (from_file is not None) > 1:
            raise AnomalyCLIPError("- (standard input) cannot be combined with other inputs")
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # names need not be valid text
        return read_list(sys.stdin)
    if not paths and from_file is None:
        raise AnomalyCLIPError(
            "no images given: name files, folders or patterns, --from-file LIST, or - for stdin"
        )
    images = chain(
        stream_images(paths, skipped=skipped, selection=selection),
        [] if from_file is None else read_list_file(from_file),
    )
    return list(images) if at_once else images
