"""``anomalyclip compare``: several methods, or one with several options, on the same images in one run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import fail, out, stoppable, track, warn
from anomalyclip.cli.flattening import Fields
from anomalyclip.cli.tables import new_table
from anomalyclip.evaluation.settings import ComparisonSettings
from anomalyclip.spec import DEFAULT_METHOD, DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.evaluation.standings import Comparison, Standing

_NOT_HERE = ("method", "engine", "tile", "overlap", *options.OF_EXPORTED)


@options.with_options
def compare(
    context: typer.Context,
    roots: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of data sets; for several, their mean is shown too.", show_default=False
        ),
    ],
    spec: Annotated[dict[str, Any], Fields(source=DetectorSpec, without=_NOT_HERE)],
    settings: ComparisonSettings,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method to compare: anomalyclip, clip, clip-ac, words, winclip, april-gan, anomalydino, coop, or a "
            "method that another package brings; repeat for several. The first is the reference for the others. A "
            "method's own options follow after commas: words,templates=imagenet. Default: anomalyclip alone, for "
            "--vary.",
            show_default=False,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="An option and the values to try, such as sigma=2,4,8. Several --vary give every combination.",
            show_default=False,
        ),
    ] = None,
    output: options.Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
) -> None:
    """Compare methods on the same images: one table, differences with 95 % intervals, cost, and maps side by side.

    Every image is decoded once, and methods with the same backbone share the pass through it. Each method gets the
    model options that it has; class names come from the data set. OUTPUT/report.html shows everything on one page.
    """
    from anomalyclip.evaluation.comparison import compare as compare_all
    from anomalyclip.evaluation.comparison import run_folder

    run = run_folder(output, resume=resume)
    with stoppable(lambda: f"stopped; the same command with --output {run.output} --resume continues"):
        found = compare_all(
            method or [DEFAULT_METHOD], roots, settings, spec=spec, vary=vary or [], output=run, track=track
        )
    _show(found, run.output, settings)
    for why in found.failed:
        fail(why)
    if found.failed:
        raise typer.Exit(1)


def _show(found: "Comparison", folder: Path | None, settings: ComparisonSettings) -> None:
    _show_standing(found, found.standings[0])
    for note in found.notes:
        warn(note)
    what = "report.html" if "html" in settings.formats else ", ".join(settings.formats)
    out().print(f"results in {folder} ({what})", markup=False)


def _show_standing(found: "Comparison", one: "Standing") -> None:
    from anomalyclip.evaluation.results import METRICS, PAPER
    from anomalyclip.evaluation.standings import percent, spelled_out

    heads = ["\n".join(METRICS[metric]) for metric in PAPER]
    first = f"image AUROC minus\n{found.reference}"
    table = new_table("method", *heads, first, right=[*heads, first], gap=1)
    differences = found.differences_of(one.title)
    for line in one.lines:
        difference = differences.get(line.name, {}).get("image_auroc")
        said = "" if line.name == found.reference else spelled_out(difference)
        table.add_row(line.name, *(percent(line.metrics.get(metric)) for metric in PAPER), said)
    out().print(one.title, markup=False)
    table.width = out().measure(table, options=out().options.update(max_width=1000)).maximum
    out().print(table, crop=False, no_wrap=True, overflow="ignore")
