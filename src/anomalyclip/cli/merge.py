"""``anomalyclip merge``: put the shards of a run together."""

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from anomalyclip.cli.console import stoppable, track, warn
from anomalyclip.cli.prediction_view import show


class OfTheRun(str, Enum):
    """What can be saved for a whole run."""

    csv = "csv"
    sheet = "sheet"


def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of shards, or the folder that holds them (--output of predict).", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the whole run.", file_okay=False)],
    save: Annotated[
        list[OfTheRun] | None,
        typer.Option(
            help="Also save csv (a table) or sheet (a contact sheet, .jpg). Repeat for several.",
            show_default=False,
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Put together what there is, even if images are missing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in --output.")] = False,
) -> None:
    """Put the shards of `predict --shard` together, into the folder that predict would have written without shards.

    Refused if a shard or an image is missing or there twice, or if the shards have other settings or are of other
    images.
    """
    from anomalyclip import merging

    with stoppable(
        "stopped; the shards are as they were, and the same command with --overwrite starts again"
    ):
        merged = merging.merge(
            runs,
            output,
            save=[kind.value for kind in save or []],
            overwrite=overwrite,
            partial=partial,
            track=track,
        )
    for sentence in merged.missing:
        warn(sentence)
    show(merged.run, Counter())
    if merged.missing or merged.run.failed:
        raise typer.Exit(1)
