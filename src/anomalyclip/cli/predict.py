"""``anomalyclip predict``: score images and draw where they are anomalous."""

import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, printable, track, warn
from anomalyclip.cli.models import check_options, scoring_of, warn_of_other_settings
from anomalyclip.errors import AnomalyCLIPError, InputError

if TYPE_CHECKING:
    from anomalyclip.detector import Detector
    from anomalyclip.inputs import ImageFile
    from anomalyclip.tiling import Tiling
    from anomalyclip.writers import PredictionWriter

_SHOWN = 20
_DRAWING = "Drawing"


class Saved(str, Enum):
    """What is kept of an image besides its line in predictions.jsonl."""

    map = "map"
    heatmap = "heatmap"
    mask = "mask"


class ColorMap(str, Enum):
    """Colours of the heat maps."""

    inferno = "inferno"
    turbo = "turbo"
    gray = "gray"


def predict(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders (searched recursively) or patterns; - reads paths from standard input.",
            show_default=False,
        ),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            help="File with one image path a line (UTF-8; no folders, no patterns).",
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    output: options.Output = None,
    save: Annotated[
        list[Saved] | None,
        typer.Option(
            help="Also keep: map (float32 .npy), heatmap (overlay, .png), mask (.png, needs --threshold); repeat.",
            show_default=False,
        ),
    ] = None,
    threshold: options.Threshold = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --output, skipping what is done.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew in --output.")] = False,
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
    colormap: Annotated[
        ColorMap, typer.Option(help="Colours of the heat maps.", rich_help_panel=_DRAWING)
    ] = ColorMap.inferno,
    alpha: Annotated[
        float,
        typer.Option(help="How much the colour covers at most.", min=0, max=1, rich_help_panel=_DRAWING),
    ] = 0.7,
    scale: Annotated[
        tuple[float, float],
        typer.Option(
            help="Map values of the first and last colour, such as: --scale 0.1 0.6",
            metavar="LOW HIGH",
            rich_help_panel=_DRAWING,
        ),
    ] = (0.0, 1.0),
) -> None:
    """Score images and draw where they are anomalous.

    Every image gets a score from 0 (normal) to 1 (anomalous), printed and kept in OUTPUT/predictions.jsonl;
    --save keeps maps, heat maps and masks too. Images that cannot be used are named and the rest is scored.
    """
    from functools import partial

    from anomalyclip.detector import Detector
    from anomalyclip.runs import alone, begin, new_folder
    from anomalyclip.tiling import Tiling
    from anomalyclip.visualize import overlay
    from anomalyclip.writers import PredictionWriter

    passed_over: Counter[str] = Counter()
    images = _images(paths or [], from_file, passed_over)
    kinds = [kind.value for kind in save or []]
    _check(kinds, threshold=threshold or model, scale=scale)
    _check_folder(output, resume=resume, overwrite=overwrite)
    check_options(context)
    tiling = None if tile is None else Tiling(tile, overlap=overlap)
    if model is not None:
        detector = Detector.from_exported(model, threshold=threshold, providers=provider, threads=threads)
    else:
        detector = Detector.from_pretrained(
            backbone,
            prompts=prompts,
            image_size=image_size,
            layers=layers,
            dpam_layers=dpam_layers,
            sigma=sigma,
            threshold=threshold,
            device=device,
            precision=precision,
            compiled=compiled,
        )
    warn_of_other_settings(detector.scorer, detector.threshold, tiling)
    if "mask" in kinds and (detector.threshold is None or detector.threshold.pixel is None):
        raise AnomalyCLIPError("--save mask needs a pixel threshold, and there is none: give --threshold 0.5")
    folder = output or new_folder("predict")
    source: dict[str, str | None] = (
        {"backbone": _whole(backbone), "prompts": _whole(prompts)}
        if model is None
        else {"model": _whole(str(model))}
    )
    settings = _settings(detector, source, tiling)
    draw = partial(overlay, colormap=colormap.value, alpha=alpha, scale=scale)
    with alone(folder):
        if not begin(folder, "predict", settings, resume=resume) and resume:
            warn(f"{folder} holds no run to go on with: this one begins at the first image")
        with PredictionWriter(folder, save=kinds, resume=resume, overwrite=overwrite, draw=draw) as writer:
            summary = _run(detector, images, writer, batch_size=batch_size, tiling=tiling)
    if summary.nothing:
        raise AnomalyCLIPError("no image came from standard input")
    summary.show(folder, passed_over)
    if summary.failed:
        raise typer.Exit(1)


def _images(
    paths: list[str], from_file: Path | None, passed_over: Counter[str]
) -> "Sequence[ImageFile] | Iterator[ImageFile]":
    """Return the images: a list where all can be known beforehand, or a stream from standard input."""
    from anomalyclip.inputs import find_images, read_list

    if "-" in paths or (from_file is not None and str(from_file) == "-"):
        if len(paths) + (from_file is not None) > 1:
            raise AnomalyCLIPError("- (standard input) cannot be combined with other inputs")
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # names need not be valid text
        return read_list(sys.stdin)
    images = list(find_images(paths, passed_over=passed_over))
    if from_file is not None:
        try:
            content = from_file.read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise AnomalyCLIPError(
                f"{from_file}: not a readable list of image paths ({error.strerror})"
            ) from None
        images += read_list(content.split("\n"))
    if not images and from_file is not None:
        raise AnomalyCLIPError(f"{from_file}: the list is empty; expected one image path a line")
    if not images:
        raise AnomalyCLIPError(
            "no images given: name files, folders or patterns, --from-file LIST, or - for stdin"
        )
    return images


def _check(
    kinds: Sequence[str],
    *,
    threshold: str | Path | None,
    scale: tuple[float, float],
) -> None:
    """Refuse, before anything is loaded, what could not work in the end."""
    if "mask" in kinds and threshold is None:
        raise AnomalyCLIPError("--save mask needs a threshold: give --threshold 0.5 or a threshold file")
    if not 0 <= scale[0] < scale[1] <= 1:
        raise AnomalyCLIPError(
            f"--scale {scale[0]} {scale[1]}: expected two map values, 0 <= first < second <= 1"
        )


def _check_folder(output: Path | None, *, resume: bool, overwrite: bool) -> None:
    from anomalyclip.runs import SETTINGS
    from anomalyclip.writers import PREDICTIONS

    if output is None:
        if resume:
            raise AnomalyCLIPError("--resume needs the folder to go on in: give --output FOLDER")
        return
    there = (output / PREDICTIONS).exists()
    if there and not (resume or overwrite):
        raise AnomalyCLIPError(
            f"{output} has predictions already: give --resume, --overwrite or another folder"
        )
    if there and resume and not (output / SETTINGS).exists():
        raise AnomalyCLIPError(f"{output} does not say how it began ({SETTINGS} is missing): start anew")


def _whole(path: str | None) -> str | None:
    """Return a name as it is, and a path in its whole length, so that one file has one spelling."""
    return path if path is None or not os.path.exists(path) else os.path.abspath(path)


def _settings(detector: "Detector", source: dict[str, str | None], tiling: "Tiling | None") -> dict[str, Any]:
    """Return what changes the results; the device changes only the last digits."""
    threshold = detector.threshold
    limits = None if threshold is None else {"score": threshold.score, "pixel": threshold.pixel}
    return {**source, **scoring_of(detector.scorer, tiling), "threshold": limits}


def _run(
    detector: "Detector",
    images: "Iterable[ImageFile]",
    writer: "PredictionWriter",
    *,
    batch_size: int,
    tiling: "Tiling | None" = None,
) -> "_Summary":
    summary = _Summary()
    done_before = {os.path.abspath(path) for path in writer.done}
    names: dict[str, str] = {}
    total = len(images) if isinstance(images, Sequence) else None
    with track("Scoring", total=total) as advance:

        def wanted() -> Iterator[str]:
            for image in images:
                if os.path.abspath(image.path) in done_before:
                    summary.skipped += 1
                    advance()
                    continue
                names[image.path] = image.name
                yield image.path

        def on_error(image: Any, error: InputError) -> None:
            fail(str(error))
            writer.write_error(image, error)
            summary.failed += 1
            advance()

        try:
            predictions = detector.stream(wanted(), batch_size=batch_size, on_error=on_error, tiling=tiling)
            for prediction in predictions:
                path = prediction.image_path
                assert path is not None
                try:
                    record = writer.write(prediction, name=names.pop(path, None))
                except InputError as error:  # the photograph went away while it was scored
                    on_error(path, error)
                else:
                    summary.add(record)
                    advance()
        except KeyboardInterrupt:
            fail(f"stopped after {summary.scored} images; --output {writer.output_dir} --resume goes on")
            raise typer.Exit(130) from None
    return summary


class _Summary:
    """What is printed at the end: counts, and the most anomalous images."""

    def __init__(self) -> None:
        self.scored = self.skipped = self.failed = self.anomalous = 0
        self.judged = False
        self.top: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        self.scored += 1
        self.judged |= record["pred_label"] is not None
        self.anomalous += bool(record["pred_label"])
        self.top.append(record)
        if len(self.top) > 10 * _SHOWN:
            self._trim()

    @property
    def nothing(self) -> bool:
        return self.scored + self.skipped + self.failed == 0

    def _trim(self) -> None:
        self.top = sorted(self.top, key=lambda record: -record["pred_score"])[:_SHOWN]

    def show(self, folder: Path, passed_over: Counter[str]) -> None:
        from rich.table import Table
        from rich.text import Text

        self._trim()
        if self.top:
            table = Table(box=None, pad_edge=False, header_style="bold")
            table.add_column("score", justify="right")
            if self.judged:
                table.add_column("verdict")
            table.add_column("image", overflow="fold")
            for record in self.top:
                verdict = (
                    ["[red]anomalous[/]" if record["pred_label"] else "[green]normal[/]"]
                    if self.judged
                    else []
                )
                table.add_row(f"{record['pred_score']:.4f}", *verdict, Text(printable(record["image_path"])))
            out().print(table)
            if self.scored > len(self.top):
                out().print(
                    f"... the {len(self.top)} most anomalous of {self.scored}; all are in predictions.jsonl"
                )
        counts = [f"{self.scored} scored"]
        if self.judged:
            counts.append(f"{self.anomalous} anomalous")
        if self.skipped:
            counts.append(f"{self.skipped} done before")
        if self.failed:
            counts.append(f"{self.failed} failed (errors.jsonl)")
        if passed_over:
            kinds = ", ".join(
                f"{number} {printable(suffix)}" for suffix, number in passed_over.most_common(5)
            )
            counts.append(f"{passed_over.total()} other files passed over ({kinds})")
        out().print(f"{', '.join(counts)}; results in {folder}", markup=False)
