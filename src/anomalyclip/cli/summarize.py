"""``anomalyclip summarize``: what runs of any size found."""

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.cli.console import out, printable, stoppable, track
from anomalyclip.cli.tables import new_table

if TYPE_CHECKING:
    from anomalyclip.summarizing import RunSummary


class Groups(str, Enum):
    """What images are compared by."""

    run = "run"
    folder = "folder"
    day = "day"


_BARS, _WIDTH, _SHOWN = 20, 40, 20


def summarize(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of predict, or folders that hold shards.", show_default=False),
    ],
    highest: Annotated[int, typer.Option(help="How many of the most anomalous images to name.", min=1)] = 20,
    by: Annotated[
        Groups | None,
        typer.Option(
            help="Compare the scores of groups: run (or shard), folder, or day (a date in the path, or else the day on "
            "which the file was changed). Default: run, if there are several.",
            show_default=False,
        ),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            help="Folder for heat maps of the most anomalous images and a page: they are scored again.",
            show_default=False,
            file_okay=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in --draw.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what runs found: counts, histogram, the most anomalous images, and drift between groups.

    Reads predictions.jsonl or Parquet files of any size in bounded memory.
    """
    from anomalyclip import summarizing

    with stoppable("stopped"):
        found = summarizing.summarize(runs, highest=highest, by=by and by.value, track=track)
        if as_json:
            out().print(json.dumps(found.to_dict(), indent=1), markup=False)
        else:
            _show(found)
        if draw is not None:
            run = summarizing.draw(runs, found, draw, overwrite=overwrite, track=track)
            if not as_json:
                out().print(printable(f"heat maps of {run.scored} images in {run.folder}"), markup=False)


def _show(found: "RunSummary") -> None:
    counts = [f"{found.scores.count:,} scored"]
    if found.judged:
        counts.append(f"{found.scores.anomalous:,} anomalous")
    if found.failed:
        counts.append(f"{found.failed:,} failed")
    out().print(", ".join(counts))
    if not found.scores.count:
        return
    bars = found.scores.bins.reshape(_BARS, -1).sum(1)
    for place, count in enumerate(bars):
        bar = "█" * max(round(_WIDTH * int(count) / int(bars.max())), bool(count))
        out().print(f"{place / _BARS:.2f}  {bar} {count:,}".rstrip())
    table = new_table("score", "image", right=["score"])
    for score, path in found.highest:
        table.add_row(f"{score:.4f}", printable(path))
    out().print(table)
    _show_drift(found)


def _show_drift(found: "RunSummary") -> None:
    drifts = found.drifts()
    if not drifts:
        return
    heads = ["images", "median", "others", "distance", "p-value"]
    table = new_table("group", *heads, "", right=heads)
    for drift in drifts[:_SHOWN]:
        medians = f"{drift.median:.4f}", f"{drift.other_median:.4f}"
        figures = f"{drift.images:,}", *medians, f"{drift.distance:.3f}", f"{drift.p_value:.2g}"
        table.add_row(printable(drift.group), *figures, "drift" if drift.is_clear else "")
    out().print(table)
    if len(drifts) > _SHOWN:
        out().print(f"... and {len(drifts) - _SHOWN} more groups; all are in --json")
    clear = sum(drift.is_clear for drift in drifts)
    out().print(
        f"{clear} of {len(drifts)} groups have drifted: their scores differ from those of all others by a "
        "Kolmogorov-Smirnov distance of 0.1 or more, and not by chance (p < 0.01, Holm)"
    )
