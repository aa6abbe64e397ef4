"""Options of large runs: shards, several processes, a cluster."""

from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from anomalyclip.detector import Detector
    from anomalyclip.sharding import Shard
    from anomalyclip.workers import Workers

_LARGE = "Large runs"

Shards = Annotated[
    str | None,
    typer.Option(
        help="I/N: score only part I of N of the images, into a folder of its own in --output; auto: the part of this "
        "process in a job of SLURM or torchrun. `anomalyclip merge` puts the parts together.",
        show_default=False,
        rich_help_panel=_LARGE,
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        help="Processes on this machine that score images, each with its own copy of the model and its share of the "
        "cores and GPUs.",
        min=1,
        rich_help_panel=_LARGE,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Score on a Ray cluster, into Parquet files: local (this machine alone), auto (the cluster that this "
        "machine belongs to), or HOST:PORT. With it, --processes is the maximum number of copies of the model.",
        metavar="ADDRESS",
        show_default=False,
        rich_help_panel=_LARGE,
    ),
]


def loaded(
    spec: DetectorSpec, threshold: str | None, processes: int
) -> "AbstractContextManager[Detector | Workers]":
    """Return the detector of a spec, in this process or in several."""
    from contextlib import nullcontext

    if processes == 1:
        return nullcontext(spec.load(threshold=threshold))
    from anomalyclip.workers import Workers

    return Workers(spec, processes, threshold=threshold)


def one_shard(text: str | None) -> "Shard | None":
    """Return the shard that ``--shard`` names, and say which one ``auto`` is."""
    from anomalyclip.cli.console import note
    from anomalyclip.sharding import Shard

    if text is None:
        return None
    shard = Shard.parse(text)
    if text == "auto":
        note(f"this process does shard {shard}")
    return shard
