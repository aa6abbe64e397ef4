"""``anomalyclip calibrate``: a threshold that one can stand by."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, track, warn
from anomalyclip.cli.models import check_options, load_detector, refuse, scoring_of, warn_of_other_settings
from anomalyclip.errors import AnomalyCLIPError, InputError

if TYPE_CHECKING:
    from anomalyclip.detector import Detector
    from anomalyclip.evaluation.thresholds import RateInterval
    from anomalyclip.prediction import Threshold
    from anomalyclip.tiling import Tiling

_NORMAL, _LABELLED = "From normal images", "From labelled images"
_MASKS = {"ground_truth", "masks"}  # folders in which data sets keep masks
_NEARLY_ONE = 0.999


class Criterion(str, Enum):
    """What is best on labelled images."""

    f1 = "f1"
    youden = "youden"


def calibrate(
    context: typer.Context,
    normals: Annotated[
        list[str] | None,
        typer.Argument(
            help="Normal images: files, folders (searched recursively) or patterns.", show_default=False
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float,
        typer.Option(help="Share of normal images that may be called anomalous.", rich_help_panel=_NORMAL),
    ] = 0.01,
    false_pixel_share: Annotated[
        float,
        typer.Option(help="Share of normal images' pixels that may be marked.", rich_help_panel=_NORMAL),
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
            help="Key of that data set. Default: recognised.", show_default=False, rich_help_panel=_LABELLED
        ),
    ] = None,
    criterion: Annotated[
        Criterion,
        typer.Option(
            help="f1: largest F1; youden: largest sensitivity + specificity - 1.", rich_help_panel=_LABELLED
        ),
    ] = Criterion.f1,
    output: Annotated[
        Path, typer.Option(help="Threshold file to write, for --threshold.", dir_okay=False)
    ] = Path("threshold.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it is there.")] = False,
    batch_size: options.BatchSize = 1,
    backbone: options.Backbone = "ViT-L-14-336",
    prompts: options.Prompts = None,
    image_size: options.ImageSize = None,
    layers: options.Layers = None,
    dpam_layers: options.DpamLayers = None,
    sigma: options.Sigma = 4.0,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    compiled: options.Compile = False,
    model: options.ExportedModel = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
    tile: options.Tile = None,
    overlap: options.Overlap = 0.25,
) -> None:
    """Find a threshold: from normal images alone, or from labelled ones.

    The file that it writes is what --threshold takes. It says what it was made from and what it can be trusted for.
    Calibrate with the options that predict will have: another image size, precision or --tile gives other scores.
    """
    from anomalyclip.files import check_writable
    from anomalyclip.tiling import Tiling

    check_options(context)
    if bool(normals) == (labelled is not None):
        raise AnomalyCLIPError("give either normal images, or a labelled data set with --labelled ROOT")
    if labelled is None:
        refuse(context, ("dataset", "criterion"), "is for labelled images: give --labelled ROOT")
    else:
        refuse(context, ("false_alarm_rate", "false_pixel_share"), "is for normal images, not for --labelled")
        refuse(context, ("tile",), "is for normal images: maps of a labelled data set are not cut")
    images = _normal_images(normals or [])
    check_writable(output, overwrite=overwrite)
    tiling = None if tile is None else Tiling(tile, overlap=overlap)
    detector, provenance = load_detector(
        model=model,
        provider=provider,
        threads=threads,
        backbone=backbone,
        prompts=prompts,
        image_size=image_size,
        layers=layers,
        dpam_layers=dpam_layers,
        sigma=sigma,
        device=device,
        precision=precision,
        compiled=compiled,
    )
    warn_of_other_settings(detector.scorer)
    if labelled is not None:
        threshold, failed = _from_labelled(detector, labelled, dataset, criterion.value, batch_size)
    else:
        threshold, failed = _from_normals(
            detector, images, false_alarm_rate, false_pixel_share, batch_size, tiling
        )
    _with_model(threshold, provenance.about, detector, tiling).to_file(output)
    out().print(
        f"threshold file {output}: score {threshold.score:.4f}, pixel {_shown(threshold.pixel)}", markup=False
    )
    if labelled is None and threshold.score is not None and threshold.score > _NEARLY_ONE:
        warn(
            f"hardly any score will be above {threshold.score:.6f}: to this model some of the normal images look as "
            "anomalous as can be; are they normal, and of a kind that it knows?"
        )
    if failed:
        raise typer.Exit(1)


def _normal_images(paths: Sequence[str]) -> list[str]:
    """Return the images to calibrate on.

    Raises
    ------
    AnomalyCLIPError
        There are masks among them: somebody named a whole data set.
    """
    from anomalyclip.inputs import find_images

    images = list(find_images(paths))
    for image in images:
        if not _MASKS.isdisjoint(part.casefold() for part in Path(image.name).parts[:-1]):
            raise AnomalyCLIPError(
                f"{image.path} lies where data sets keep masks, so defective images are here too: name the folders of "
                "normal images alone (such as CLASS/train/good), or give the whole data set as --labelled ROOT"
            )
    return [image.path for image in images]


def _from_normals(
    detector: "Detector",
    images: Sequence[str],
    rate: float,
    share: float,
    batch_size: int,
    tiling: "Tiling | None",
) -> "tuple[Threshold, int]":
    from anomalyclip.evaluation.thresholds import NormalMaps, require_share, score_threshold
    from anomalyclip.prediction import Threshold

    require_share(rate, "false-alarm rate")
    require_share(share, "share of false pixels")
    scores, maps, failed = [], NormalMaps(), []

    def on_error(image: Any, error: InputError) -> None:
        fail(str(error))
        failed.append(image)

    with _stoppable(), track("Scoring", total=len(images)) as advance:
        for prediction in detector.stream(images, batch_size=batch_size, on_error=on_error, tiling=tiling):
            scores.append(prediction.pred_score)
            maps.add(prediction.anomaly_map)
            advance()
    found, pixel = score_threshold(scores, rate), maps.threshold(share)
    out().print(found.explanation(), markup=False)
    out().print(
        f"Pixels: {100 * pixel.share:.3g} % are marked, in {pixel.marked.count} of {pixel.marked.total} images "
        f"(true rate up to {100 * pixel.marked.high:.3g} %, 95 % confidence).",
        markup=False,
    )
    info = {
        "method": "normal images",
        "images": len(scores),
        "false_alarm_rate": {"wanted": rate, **_interval(found.alarms)},
        "false_pixel_share": {"wanted": share, "seen": pixel.share},
        "images_with_false_pixels": _interval(pixel.marked),
        "says": found.explanation(),
    }
    return Threshold(score=found.value, pixel=pixel.value, info=info), len(failed)


def _from_labelled(
    detector: "Detector", root: Path, dataset: str | None, criterion: str, batch_size: int
) -> "tuple[Threshold, int]":
    from tempfile import TemporaryDirectory

    from anomalyclip.data.listing import load_samples
    from anomalyclip.evaluation.evaluator import Options, evaluate, pooled
    from anomalyclip.evaluation.maps import DetectorSource
    from anomalyclip.evaluation.thresholds import labelled_threshold
    from anomalyclip.prediction import Threshold

    data = pooled(load_samples(root, dataset))
    tracked = track("Scoring", total=len(data))
    with _stoppable(), TemporaryDirectory(prefix="anomalyclip-") as folder, tracked as advance:
        source = DetectorSource(detector, data.root, Path(folder) / "maps", batch_size=batch_size)
        result = evaluate(source, data, folder, options=Options(cases=False), advance=advance).classes[0]
    for why in result.failed.values():
        fail(why)
    found = labelled_threshold(
        [image.anomaly for image in result.images], [image.score for image in result.images], criterion
    )
    out().print(
        f"{criterion}: misses {_words(found.misses)} anomalous images, raises {_words(found.alarms)} false alarms on "
        "normal ones. These are the images that the threshold was chosen on: on others expect somewhat worse.",
        markup=False,
    )
    info = {
        "method": f"labelled images, {criterion}",
        "images": len(result.images),
        "data": str(root),
        "misses": _interval(found.misses),
        "false_alarms": _interval(found.alarms),
    }
    return Threshold(score=found.value, pixel=result.thresholds.get(f"pixel_{criterion}"), info=info), len(
        result.failed
    )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Say what Ctrl-C means here: there is nothing to go on with."""
    try:
        yield
    except KeyboardInterrupt:
        fail("stopped: no threshold was written")
        raise typer.Exit(130) from None


def _with_model(
    threshold: "Threshold", model: dict[str, Any], detector: "Detector", tiling: "Tiling | None"
) -> "Threshold":
    from dataclasses import replace

    scoring = scoring_of(detector.scorer, tiling)
    return replace(threshold, info={**threshold.info, "model": model, "scoring": scoring})


def _interval(rate: "RateInterval") -> dict[str, Any]:
    return {"count": rate.count, "of": rate.total, "low": rate.low, "high": rate.high, "confidence": 0.95}


def _words(rate: "RateInterval") -> str:
    return f"{rate.count} of {rate.total} (true rate {100 * rate.low:.3g} to {100 * rate.high:.3g} %)"


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
