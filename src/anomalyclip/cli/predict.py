"""``anomalyclip predict``: score images and draw where they are anomalous."""

import io
import sys
from collections import Counter
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.cli import large, on_cluster, options, saving
from anomalyclip.cli import live as live_source
from anomalyclip.cli.console import stoppable, track
from anomalyclip.cli.prediction_view import name_failures, show
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    from anomalyclip.inputs import ImageFile
    from anomalyclip.readers import Selection


@options.with_options
def predict(
    context: typer.Context,
    spec: DetectorSpec,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, zip or tar archives, folders (searched recursively), patterns, or addresses of these such as "
            "s3://bucket/folder; - reads paths from standard input.",
            show_default=False,
        ),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            help="Text file with one image per line, a path or an address (UTF-8; no folders, no patterns).",
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    live: live_source.Address = None,
    every: options.Every = None,
    axis: options.Axis = None,
    output: saving.Output = None,
    save: saving.Save = None,
    threshold: options.Threshold = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --output; skip finished images.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again in --output and replace its results.")
    ] = False,
    shard: large.Shards = None,
    processes: large.Processes = 1,
    ray: large.Ray = None,
    batch_size: options.BatchSize = 1,
    colormap: saving.Colors = saving.ColorMap.inferno,
    alpha: saving.Alpha = 0.7,
    scale: saving.Scale = None,
    no_caption: saving.NoCaption = False,
) -> None:
    """Score images and draw where they are anomalous.

    Every image gets a score from 0 (normal) to 1 (anomalous), printed and written to OUTPUT/predictions.jsonl.
    OUTPUT/index.html shows the most anomalous ones; --save also writes maps, heat maps and masks. Images that cannot be
    read are reported, and the others are scored.
    """
    from anomalyclip import predicting
    from anomalyclip.engines.kept import of_run, prepare

    skipped: Counter[str] = Counter()
    part = large.one_shard(shard)
    at_once = part is None and ray is None
    source = (
        None
        if live is None
        else live_source.open_live(context, live, every=every, batch_size=batch_size, others=paths or [])
    )
    images = (
        _images(paths or [], from_file, skipped, options.selection(every, axis), at_once=at_once)
        if source is None
        else live_source.frames_of(source)
    )
    if ray is not None:
        on_cluster.predict(context, spec, images, output, skipped, context.params)
        return
    results = saving.results(
        save, colormap, alpha, scale, no_caption, batch_size=batch_size, masks=threshold or spec.model
    )
    folder = predicting.run_folder(output, resume=resume, overwrite=overwrite, shard=part)

    def stopped() -> str:
        where = folder.place if part is None else output
        return (
            f"stopped; results already written are kept, and the same command with --output {where} --resume "
            "continues"
        )

    spec = of_run(spec, folder)
    prepare(spec, images=len(images) if isinstance(images, Sized) else None)
    with (
        stoppable(stopped),
        large.loaded(spec, threshold, processes) as detector,
        live_source.until_stopped(source),
    ):
        run = predicting.predict(
            detector,
            images,
            folder,
            save=results.save,
            shard=part,
            batch_size=batch_size,
            draw=results.draw,
            draw_small=results.draw_small,
            on_error=name_failures(),
            track=track,
        )
    show(run, skipped)
    if run.failed:
        raise typer.Exit(1)


def _images(
    paths: list[str],
    from_file: Path | None,
    skipped: Counter[str],
    selection: "Selection | None",
    *,
    at_once: bool,
) -> "Iterable[ImageFile]":
    """Return the images: counted where all can be known beforehand, or a stream."""
    from itertools import chain

    from anomalyclip.addresses import as_address
    from anomalyclip.inputs import Listed, read_list, read_list_file
    from anomalyclip.predicting import stream_images

    if "-" in paths or (from_file is not None and str(from_file) == "-"):
        if len(paths) + (from_file is not None) > 1:
            raise AnomalyCLIPError("- (standard input) cannot be combined with other inputs")
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # names need not be valid text
        return read_list(sys.stdin)
    if not paths and from_file is None:
        raise AnomalyCLIPError(
            "no images given: name files, folders, patterns or addresses, --from-file LIST, or - for stdin"
        )
    images = chain(
        stream_images(paths, skipped=skipped, selection=selection),
        [] if from_file is None else read_list_file(from_file),
    )
    return Listed(images) if at_once and not any(map(as_address, paths)) else images
