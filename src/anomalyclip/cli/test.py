# ruff: noqa: PT028 (the command is called test; it is no test)
"""``anomalyclip test``: the paper's evaluation of one or several data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, printable, stoppable, track, warn
from anomalyclip.cli.tables import new_table
from anomalyclip.evaluation.results import METRICS, PAPER
from anomalyclip.evaluation.settings import EvaluationSettings, ShotSettings
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.evaluation.summary import Evaluation
    from anomalyclip.evaluation.tables import Table
    from anomalyclip.runs import RunFolder


@options.with_options
def test(
    context: typer.Context,
    roots: Annotated[
        list[Path], typer.Argument(help="Folders of data sets; several give one table.", show_default=False)
    ],
    settings: EvaluationSettings,
    shots: ShotSettings,
    spec: DetectorSpec,
    threshold: options.Threshold = None,
    output: options.Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
) -> None:
    """Evaluate on data sets with ground truth: the paper's table, exact metrics beside it, and a report.

    Memory does not grow with the number of images. A stopped run continues with --resume.
    """
    from anomalyclip.evaluation.run import evaluate, run_folder

    if settings.maps is not None:
        options.refuse(context, options.ALL, "cannot be combined with --from-maps: the maps already exist")
    if not shots.shots:
        options.refuse(context, ("seeds",), "needs --shots K: it is the number of draws of references")
    run = run_folder(output, resume=resume)
    if shots.shots:
        _few_shot(spec, roots, shots, settings, threshold, run)
        return
    with stoppable(lambda: f"stopped; the same command with --output {run.output} --resume continues"):
        evaluation = evaluate(
            spec if settings.maps is None else None,
            roots,
            settings,
            threshold=threshold,
            output=run,
            track=track,
        )
    _show(evaluation, run.output, settings)
    for why in evaluation.failed:
        fail(why)
    if evaluation.failed:
        raise typer.Exit(1)


def _few_shot(
    spec: DetectorSpec,
    roots: list[Path],
    shots: ShotSettings,
    settings: EvaluationSettings,
    threshold: str | None,
    run: "RunFolder",
) -> None:
    from anomalyclip.evaluation.shots import evaluate_shots

    with stoppable(lambda: f"stopped; the same command with --output {run.output} --resume continues"):
        found = evaluate_shots(spec, roots, shots, settings, threshold=threshold, output=run, track=track)
    heads = ["references", *("\n".join(METRICS[name]) for name in PAPER)]
    table = new_table(*heads, right=heads, gap=1)
    for row in found.rows():
        table.add_row(*row)
    out().print(printable(str(found.runs[0].evaluation.about["title"])), markup=False)
    out().print(table, crop=False, no_wrap=True, overflow="ignore")
    out().print(
        printable(f"results in {run.output} (shots.md, shots.json, a report for each draw)"), markup=False
    )
    failed = [why for one in found.runs for why in one.evaluation.failed]
    for why in dict.fromkeys(failed):
        fail(why)
    if failed:
        raise typer.Exit(1)


def _show(evaluation: "Evaluation", folder: Path | None, settings: EvaluationSettings) -> None:
    from anomalyclip.evaluation.tables import SOURCE

    out().print(printable(str(evaluation.about["title"])), markup=False)
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
    what = "report.html" if "html" in settings.formats else ", ".join(settings.formats)
    out().print(printable(f"results in {folder} ({what})"), markup=False)


def _drawn(table: "Table") -> Any:
    from rich.text import Text

    from anomalyclip.evaluation.results import METRICS

    columns = table.columns(short=True)
    heads = []
    for column in columns:
        level, name = METRICS[column.metric]
        heads.append(f"{level}\n{name}" if column.source == "ours" else f"\n{column.head}")
    drawn = new_table(table.first, "normal", "anom.", *heads, right=["normal", "anom.", *heads], gap=1)
    for row in table.rows:
        cells = [str(row.normal), str(row.anomalous), *(column.text(row) for column in columns)]
        drawn.add_row(Text(printable(row.label)), *cells, style="bold" if row.label == "mean" else None)
    return drawn
