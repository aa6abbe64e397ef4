"""``anomalyclip calibrate``: a threshold, and what it can be trusted for."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, stoppable, track
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.spec import DetectorSpec

_NORMAL, _LABELLED = "From normal images", "From labelled images"


class Criterion(str, Enum):
    """What is best on labelled images."""

    f1 = "f1"
    youden = "youden"


@options.with_options
def calibrate(
    context: typer.Context,
    spec: DetectorSpec,
    normals: Annotated[
        list[str] | None,
        typer.Argument(
            help="Normal images: files, folders (searched recursively) or patterns.", show_default=False
        ),
    ] = None,
    every: options.Every = None,
    axis: options.Axis = None,
    false_alarm_rate: Annotated[
        float,
        typer.Option(help="Fraction of normal images that may be called anomalous.", rich_help_panel=_NORMAL),
    ] = 0.01,
    false_pixel_share: Annotated[
        float,
        typer.Option(help="Fraction of normal images' pixels that may be marked.", rich_help_panel=_NORMAL),
    ] = 0.001,
    labelled: Annotated[
        Path | None,
        typer.Option(
            help="Data set with normal and anomalous images, instead of NORMALS.",
            show_default=False,
            file_okay=False,
            rich_help_panel=_LABELLED,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Key of that data set. Default: detected from its layout.",
            show_default=False,
            rich_help_panel=_LABELLED,
        ),
    ] = None,
    criterion: Annotated[
        Criterion,
        typer.Option(
            help="What to maximise. f1: F1; youden: sensitivity + specificity - 1.", rich_help_panel=_LABELLED
        ),
    ] = Criterion.f1,
    output: Annotated[
        Path, typer.Option(help="Threshold file to write, for --threshold; also an address.", dir_okay=False)
    ] = Path("threshold.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
    batch_size: options.BatchSize = 1,
) -> None:
    """Find a threshold: from normal images alone, or from labelled ones.

    With --references and no images, each reference is compared with the others, which tells only a rough threshold.

    The file it writes is what --threshold takes, and says how far the threshold can be trusted. Use the same model
    options as for predict: another image size, precision or --tile gives other scores.
    """
    from anomalyclip.addresses import as_place
    from anomalyclip.evaluation import calibration
    from anomalyclip.files import check_writable

    from_references = not normals and labelled is None and spec.references is not None
    if bool(normals) == (labelled is not None) and not from_references:
        raise AnomalyCLIPError(
            "give either normal images, or a labelled data set with --labelled ROOT; with --references both may be "
            "left out"
        )
    failed = []

    def on_error(image: object, error: InputError) -> None:
        fail(str(error))
        failed.append(image)

    if labelled is None:
        options.refuse(context, ("dataset", "criterion"), "is for labelled images: give --labelled ROOT")
        chosen = options.selection(every, axis)
        images = None if from_references else calibration.normal_images(normals or [], selection=chosen)
    else:
        names = ("false_alarm_rate", "false_pixel_share", "every", "axis")
        options.refuse(context, names, "is for normal images, not for --labelled")
    place = as_place(output)
    check_writable(place, overwrite=overwrite)
    detector = spec.load()
    with stoppable("stopped: no threshold was written"):
        if labelled is None:
            threshold = calibration.calibrate(
                detector,
                images,
                false_alarm_rate=false_alarm_rate,
                false_pixel_share=false_pixel_share,
                batch_size=batch_size,
                on_error=on_error,
                track=track,
            )
        else:
            threshold = calibration.calibrate_labelled(
                detector,
                labelled,
                dataset=dataset,
                criterion=criterion.value,
                batch_size=batch_size,
                on_error=on_error,
                track=track,
            )
    threshold.to_file(place)
    for line in threshold.info["says"]:
        out().print(line, markup=False)
    pixel = "none" if threshold.pixel is None else f"{threshold.pixel:.4f}"
    out().print(f"threshold file {place}: score {threshold.score:.4f}, pixel {pixel}", markup=False)
    if failed:
        raise typer.Exit(1)
