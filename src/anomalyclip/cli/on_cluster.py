"""``anomalyclip predict --ray``: the same on a Ray cluster."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import stoppable, track
from anomalyclip.cli.prediction_view import name_failures, show
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.inputs import ImageFile

_REFUSED = ("shard", "colormap", "alpha", "scale", "no_caption")


def predict(
    context: typer.Context,
    spec: DetectorSpec,
    images: "Iterable[ImageFile]",
    output: str | None,
    skipped: Counter[str],
    options_given: dict[str, Any],
) -> None:
    """Score images on the cluster at ``--ray``; `options_given` are the options of ``predict`` by name."""
    from anomalyclip import distributed
    from anomalyclip.distributed.run import run_folder

    options.refuse(context, _REFUSED, "cannot be used with --ray, which draws nothing and needs no shards")
    kinds = [kind.value for kind in options_given["save"] or []]
    if other := sorted(set(kinds) - {"map"}):
        raise AnomalyCLIPError(
            f"--save {other[0]} cannot be used with --ray: only maps are saved, as a column; `anomalyclip summarize` "
            "draws the most anomalous images"
        )
    actors = options_given["processes"] if "processes" in options.given(context) else None
    cluster = distributed.Cluster(options_given["ray"], actors)
    folder = run_folder(output, resume=options_given["resume"], overwrite=options_given["overwrite"])
    with stoppable(
        lambda: (
            "stopped; results already written are kept, and the same command with --output "
            f"{folder.place} --resume continues"
        )
    ):
        run = distributed.predict(
            images,
            spec,
            folder,
            threshold=options_given["threshold"],
            maps="map" in kinds,
            batch_size=options_given["batch_size"],
            cluster=cluster,
            on_error=name_failures(),
            track=track,
        )
    show(run, skipped, in_parquet=True)
    if run.failed:
        raise typer.Exit(1)
