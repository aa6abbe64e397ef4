# ruff: noqa: PT028 (the command is called test; it is no test)
"""``anomalyclip test``: the paper's evaluation of one or several data sets."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, stoppable, track, warn
from anomalyclip.cli.tables import new_table
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.evaluation.summary import Evaluation
    from anomalyclip.evaluation.tables import Table

_DATA, _RESULTS = "Data", "Results"


class Kept(str, Enum):
    """What is kept of an image besides its score."""

    map = "map"


class ResultFormat(str, Enum):
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


@options.with_spec()
def test(
    context: typer.Context,
    spec: DetectorSpec,
    roots: Annotated[
        list[Path], typer.Argument(help="Folders of data sets; several give one table.", show_default=False)
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Key of each data set, in the order of ROOTS (see: anomalyclip datasets). Default: detected from the "
            "layout.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    allow_outside: Annotated[
        bool,
        typer.Option("--allow-outside", help="Follow links that leave a root.", rich_help_panel=_DATA),
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
        bool, typer.Option("--compare", help="Show the paper's figures and the differences next to ours.")
    ] = False,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="Also evaluate two trivial scorers as a baseline to beat."),
    ] = False,
    threshold: options.Threshold = None,
    output: options.Output = None,
    output_format: Annotated[
        list[ResultFormat] | None,
        typer.Option(
            "--format",
            help="Format of the results; repeat for several. Default: json, csv, md, html.",
            show_default=False,
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    save: Annotated[
        list[Kept] | None,
        typer.Option(
            help="Also save: map (float32 .npy), for --from-maps.",
            show_default=False,
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    max_memory: Annotated[
        float,
        typer.Option(help="Megabytes for sorting the pixels of a class; does not change the results.", min=4),
    ] = 32,
    batch_size: options.BatchSize = 1,
) -> None:
    """Evaluate on data sets with ground truth: the paper's table, exact metrics beside it, and a report.

    Memory does not grow with the number of images. A stopped run continues with --resume.
    """
    from anomalyclip.evaluation.run import DEFAULT_FORMATS, evaluate, run_folder

    if from_maps is not None:
        options.refuse(context, options.ALL, "makes no sense with --from-maps: the maps are there already")
    formats = [kind.value for kind in output_format or []] or DEFAULT_FORMATS
    run = run_folder(output, resume=resume)
    with stoppable(lambda: f"stopped; the same command with --output {run.output} --resume continues"):
        evaluation = evaluate(
            None if from_maps is not None else spec,
            roots,
            maps=from_maps,
            dataset=dataset,
            allow_outside=allow_outside,
            threshold=threshold,
            controls=controls,
            protocol=protocol.value,
            compare=compare,
            output=run,
            formats=formats,
            save_maps=bool(save),
            memory=max_memory,
            batch_size=batch_size,
            track=track,
        )
    _show(evaluation, run.output, formats)
    for why in evaluation.failed:
        fail(why)
    if evaluation.failed:
        raise typer.Exit(1)


def _show(evaluation: "Evaluation", folder: Path | None, formats: Sequence[str]) -> None:
    from anomalyclip.evaluation.tables import SOURCE

    out().print(str(evaluation.about["title"]), markup=False)
    table = _drawn(evaluation.tables[0])
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


def _drawn(table: "Table") -> Any:
    from anomalyclip.evaluation.results import METRICS

    columns = table.columns(short=True)
    heads = []
    for column in columns:
        level, name = METRICS[column.metric]
        heads.append(f"{level}\n{name}" if column.source == "ours" else f"\n{column.head}")
    drawn = new_table(table.first, "normal", "anom.", *heads, right=["normal", "anom.", *heads], gap=1)
    for row in table.rows:
        cells = [row.label, str(row.normal), str(row.anomalous), *(column.text(row) for column in columns)]
        drawn.add_row(*cells, style="bold" if row.label == "mean" else None)
    return drawn
