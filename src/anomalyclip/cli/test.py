# ruff: noqa: PT028 (the command is called test; it is no test)
"""``anomalyclip test``: the paper's evaluation of one or several data sets."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, track, warn
from anomalyclip.cli.models import (
    DETECTOR,
    check_options,
    load_detector,
    refuse,
    scoring_of,
    warn_of_other_settings,
)
from anomalyclip.errors import AnomalyCLIPError

if TYPE_CHECKING:
    from anomalyclip.data.meta import SampleList
    from anomalyclip.detector import Detector
    from anomalyclip.evaluation.maps import Source
    from anomalyclip.evaluation.provenance import Provenance
    from anomalyclip.evaluation.results import DatasetResult
    from anomalyclip.evaluation.summary import Evaluation
    from anomalyclip.evaluation.tables import Table

_DATA, _RESULTS = "Data", "Results"


class Kept(str, Enum):
    """What is kept of an image besides its score."""

    map = "map"


class Format(str, Enum):
    """A form of the results."""

    json = "json"
    csv = "csv"
    md = "md"
    html = "html"
    latex = "latex"


class Protocol(str, Enum):
    """Which metrics a table shows."""

    paper = "paper"
    exact = "exact"


def test(
    context: typer.Context,
    roots: Annotated[
        list[Path], typer.Argument(help="Folders of data sets; several give one table.", show_default=False)
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Key of each data set, in the order of ROOTS (see: anomalyclip datasets). Default: recognised.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Follow links that leave a root.", rich_help_panel=_DATA)
    ] = False,
    from_maps: Annotated[
        Path | None,
        typer.Option(
            help="Evaluate the maps in this folder (as `predict --save map` writes them) instead of a model.",
            file_okay=False,
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(help="paper: its four metrics, then others; exact: without the published AUPRO."),
    ] = Protocol.paper,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put the paper's figures and the differences beside ours.")
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also evaluate two scorers that know nothing, to compare with.")
    ] = False,
    threshold: options.Threshold = None,
    output: options.Output = None,
    output_format: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="Form of the results; repeat for several. Default: json, csv, md, html.",
            show_default=False,
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    save: Annotated[
        list[Kept] | None,
        typer.Option(
            help="Also keep: map (float32 .npy), for --from-maps.",
            show_default=False,
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --output after a stop.")] = False,
    max_memory: Annotated[
        float,
        typer.Option(help="Megabytes for sorting the pixels of a class; does not change the results.", min=4),
    ] = 32,
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
) -> None:
    """Evaluate on data sets with ground truth: the paper's table, exact metrics beside it, and a report.

    Memory does not grow with the number of images. A stopped run goes on with --resume.
    """
    from anomalyclip.detector import as_threshold
    from anomalyclip.evaluation.evaluator import Options
    from anomalyclip.evaluation.summary import Evaluation
    from anomalyclip.runs import alone, begin, new_folder

    formats = [kind.value for kind in output_format or [Format.json, Format.csv, Format.md, Format.html]]
    data = _load(roots, dataset or [], allow_outside=allow_outside)
    limits = as_threshold(threshold)
    if from_maps is not None:
        refuse(context, DETECTOR, "makes no sense with --from-maps: the maps are there already")
    check_options(context)
    _check(output, resume=resume, from_maps=from_maps, keep=bool(save))
    detector, provenance = None, None
    if from_maps is None:
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
        limits = limits or detector.threshold
        warn_of_other_settings(detector.scorer, limits)
    settings = _settings(data, from_maps, provenance, detector)
    folder = output or new_folder("test")
    with alone(folder):
        if not begin(folder, "test", settings, resume=resume) and resume:
            warn(f"{folder} holds no run to go on with: this one begins at the first image")
        run = _Run(
            folder,
            options=Options(memory=max_memory, cases="html" in formats, threshold=limits),
            resume=resume,
            keep=bool(save),
            batch_size=batch_size,
        )
        results = run.model(data, detector, from_maps)
        control_results = run.controls(data, detector, from_maps) if controls else []
        evaluation = Evaluation(
            results,
            control_results,
            about=_about(settings, data, results, detector),
            protocol=protocol.value,
            compare=compare,
            threshold=limits,
            notes=_notes(data, results, provenance, detector, compare=compare),
        )
        _write(evaluation, folder, formats)
    _show(evaluation, folder, formats)
    lost = [why for result in results for why in result.failed.values()]
    for why in lost:
        fail(why)
    if lost:
        raise typer.Exit(1)


def _load(roots: Sequence[Path], keys: Sequence[str], *, allow_outside: bool) -> "dict[str, SampleList]":
    """Return the data sets by name."""
    from anomalyclip.data.listing import load_samples
    from anomalyclip.evaluation.evaluator import name_of

    if keys and len(keys) != len(roots):
        raise AnomalyCLIPError(
            f"{len(roots)} data sets, {len(keys)} --dataset: give one for each, in the same order"
        )
    found: dict[str, SampleList] = {}
    for index, root in enumerate(roots):
        data = load_samples(root, keys[index] if keys else None, allow_outside=allow_outside)
        name = name_of(data)
        if name in found:
            raise AnomalyCLIPError(
                f"{found[name].root} and {root} are both called {name!r}: evaluate them one by one"
            )
        found[name] = data
    return found


def _check(output: Path | None, *, resume: bool, from_maps: Path | None, keep: bool) -> None:
    if resume and output is None:
        raise AnomalyCLIPError("--resume needs the folder to go on in: give --output FOLDER")
    if not resume and output is not None and any(output.glob("*/classes")):
        raise AnomalyCLIPError(f"{output} holds an evaluation: give --resume, or choose another folder")
    if from_maps is not None and keep:
        raise AnomalyCLIPError("--save map makes no sense with --from-maps: the maps are there already")


def _settings(
    data: "dict[str, SampleList]",
    from_maps: Path | None,
    provenance: "Provenance | None",
    detector: "Detector | None",
) -> dict[str, Any]:
    """Return what changes the results."""
    from anomalyclip.evaluation.summary import describe_data

    settings: dict[str, Any] = {"data": [describe_data(samples, key) for key, samples in data.items()]}
    if provenance is not None and detector is not None:
        return {**settings, "model": provenance.about, "scoring": scoring_of(detector.scorer)}
    return {**settings, "maps": str(from_maps)}


class _Run:
    """Where and how the data sets are evaluated."""

    def __init__(self, folder: Path, *, options: Any, resume: bool, keep: bool, batch_size: int) -> None:
        self.folder, self.options, self.resume = folder, options, resume
        self.keep, self.batch_size = keep, batch_size

    def model(
        self, data: "dict[str, SampleList]", detector: "Detector | None", from_maps: Path | None
    ) -> "list[DatasetResult]":
        from anomalyclip.evaluation.maps import FolderSource

        results = []
        for key, samples in data.items():
            if detector is None:
                assert from_maps is not None
                own = from_maps / key  # several data sets: a folder for each
                source: Source = FolderSource(own if len(data) > 1 or own.is_dir() else from_maps)
            else:
                source = self._detector_source(detector, samples, self.folder / key, keep=self.keep)
            results.append(self._evaluate(key, samples, self.folder / key, source))
        return results

    def controls(
        self, data: "dict[str, SampleList]", detector: "Detector | None", from_maps: Path | None
    ) -> "list[DatasetResult]":
        from dataclasses import replace

        from anomalyclip.detector import Detector
        from anomalyclip.evaluation.controls import CONTROLS
        from anomalyclip.evaluation.maps import side_of_maps
        from anomalyclip.evaluation.summary import SIZE

        size = SIZE if from_maps is None else side_of_maps(from_maps) or SIZE
        if detector is not None:
            size = detector.scorer.image_size
        self.options = replace(self.options, cases=False)
        results = []
        for name, control in CONTROLS.items():
            for key, samples in data.items():
                folder = self.folder / key / f"control-{name}"
                source = self._detector_source(Detector(control(size)), samples, folder, keep=False)
                results.append(self._evaluate(key, samples, folder, source, name))
        return results

    def _detector_source(
        self, detector: "Detector", samples: "SampleList", folder: Path, *, keep: bool
    ) -> "Source":
        from anomalyclip.evaluation.maps import DetectorSource

        where = folder if keep else folder / "unfinished"
        return DetectorSource(
            detector, samples.root, where, batch_size=self.batch_size, keep=keep, resume=self.resume
        )

    def _evaluate(
        self,
        key: str,
        samples: "SampleList",
        folder: Path,
        source: "Source",
        scorer: str = "model",
    ) -> "DatasetResult":
        from anomalyclip.evaluation.evaluator import evaluate

        what = key if scorer == "model" else f"{key}, control: {scorer}"
        with track(what, total=len(samples)) as advance:
            try:
                return evaluate(
                    source,
                    samples,
                    folder,
                    key=key,
                    scorer=scorer,
                    options=self.options,
                    resume=self.resume,
                    advance=advance,
                )
            except KeyboardInterrupt:
                warn(f"stopped; the same command with --output {self.folder} --resume goes on")
                raise typer.Exit(130) from None


def _about(
    settings: dict[str, Any],
    data: "dict[str, SampleList]",
    results: "Sequence[DatasetResult]",
    detector: "Detector | None",
) -> dict[str, Any]:
    from anomalyclip.evaluation.summary import versions
    from anomalyclip.machine import peak_memory

    encode, metrics = (sum(result.seconds(what) for result in results) for what in ("encode", "metrics"))
    return {
        **settings,
        "device": None if detector is None else detector.scorer.settings().get("device"),
        "versions": versions(),
        "seconds": {"encode": encode, "metrics": metrics},
        "peak_memory_mb": round(peak_memory(), 1),
    }


def _notes(
    data: "dict[str, SampleList]",
    results: "Sequence[DatasetResult]",
    provenance: "Provenance | None",
    detector: "Detector | None",
    *,
    compare: bool,
) -> list[str]:
    from anomalyclip.data.catalog import catalog
    from anomalyclip.evaluation.provenance import trained_on_this
    from anomalyclip.evaluation.summary import data_notes, setting_notes
    from anomalyclip.evaluation.tables import not_the_papers

    notes = []
    if provenance is not None and detector is not None:
        notes += [
            warning for key, samples in data.items() if (warning := trained_on_this(provenance, key, samples))
        ]
        notes += setting_notes(detector.scorer.settings())
    for result in results:
        notes += data_notes(result)
    for result in results if compare else ():
        if result.key not in catalog():
            notes.append(f"{result.key} is not in the catalogue: there is nothing to compare it with")
        elif differ := not_the_papers(result):
            notes.append(
                f"{result.key}: its mean is not compared with the paper's, which is over other classes ({differ})"
            )
    return notes


def _write(evaluation: "Evaluation", folder: Path, formats: Sequence[str]) -> None:
    from anomalyclip.evaluation.summary import write_results

    write_results(evaluation, folder, [kind for kind in formats if kind != "html"])
    if "html" in formats:
        from anomalyclip.evaluation.report import write_report

        if not write_report(evaluation, folder):
            warn(
                "the report has no curves, since matplotlib is not installed: pip install 'anomalyclip[report]'"
            )


def _show(evaluation: "Evaluation", folder: Path, formats: Sequence[str]) -> None:
    from anomalyclip.evaluation.tables import SOURCE

    model = evaluation.about.get("model")
    if model is not None:
        trained = f", trained on {model['trained_on']}" if model["trained_on"] else ""
        out().print(f"{model['backbone']}, prompts {model['prompts']}{trained}", markup=False)
    table = _rich(evaluation.tables[0])
    # Whole numbers or nothing: a table that is wider than the screen is wrapped by the terminal, not cut here.
    table.width = out().measure(table, options=out().options.update(max_width=1000)).maximum
    out().print(table, crop=False, no_wrap=True, overflow="ignore")
    if evaluation.compare:
        out().print(f"paper: {SOURCE}")
    for note in evaluation.notes:
        warn(note)
    if lost := evaluation.not_beaten():
        warn("the model does not beat a control that knows nothing:\n  " + "\n  ".join(lost))
    elif evaluation.controls:
        out().print("the model beats both controls by every metric")
    what = "report.html" if "html" in formats else ", ".join(formats)
    out().print(f"results in {folder} ({what})", markup=False)


def _rich(table: "Table") -> Any:
    from rich.table import Table as RichTable

    from anomalyclip.evaluation.results import METRICS

    columns = table.columns(short=True)
    drawn = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    drawn.add_column(table.first)
    for name in ("normal", "anom."):
        drawn.add_column(name, justify="right", style="dim")
    for column in columns:
        level, name = METRICS[column.metric]
        drawn.add_column(
            f"{level}\n{name}" if column.source == "ours" else f"\n{column.head}", justify="right"
        )
    for row in table.rows:
        drawn.add_row(
            row.label,
            str(row.normal),
            str(row.anomalous),
            *(column.text(row) for column in columns),
            style="bold" if row.label == "mean" else None,
        )
    return drawn
