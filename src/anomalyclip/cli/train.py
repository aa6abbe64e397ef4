"""``anomalyclip train``: learn prompts, or another method's trained part, on a data set with masks."""

from pathlib import Path
from typing import Annotated

import typer

from anomalyclip.addresses import Address
from anomalyclip.cli import options, training_view
from anomalyclip.cli.console import fail, out, track, warn
from anomalyclip.cli.flattening import Fields
from anomalyclip.errors import InputError
from anomalyclip.spec import DEFAULT_METHOD, DetectorSpec
from anomalyclip.training.settings import SPEC_OPTIONS, TrainingSettings

_OF_SPEC = tuple(name for name in SPEC_OPTIONS if name != "method")


@options.with_options
def train(
    context: typer.Context,
    root: Annotated[Path, typer.Argument(help="Folder of the data set, or its address.", show_default=False)],
    settings: TrainingSettings,
    spec: Annotated[DetectorSpec, Fields(only=_OF_SPEC)],
    method: Annotated[
        str, typer.Option(help="Method to train.", metavar="anomalyclip|april-gan|coop")
    ] = DEFAULT_METHOD,
    output: options.Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show what would be done and estimate how long it takes; write nothing."
        ),
    ] = False,
    show_in_tensorboard: Annotated[
        bool, typer.Option("--track", help="Also write TensorBoard curves.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/N: only encode part I of N of the images; for several processes. Then train without --shard.",
            show_default=False,
            rich_help_panel="Features",
        ),
    ] = None,
) -> None:
    """Learn AnomalyCLIP's two prompts, or the trained part of another method, from a data set with masks.

    Each image is encoded once; its features are kept for this and every later run. OUTPUT gets what was learned
    (prompts.safetensors, and prompts.pth in the published form; layers.safetensors for april-gan, context.safetensors
    for coop), config.yaml, metrics.jsonl, loss.png and checkpoints. Ctrl-C saves a checkpoint, and --resume continues.
    """
    from dataclasses import replace

    from anomalyclip.runs import SETTINGS, RunFolder
    from anomalyclip.training.run import learn, remarks
    from anomalyclip.training.session import open_session

    run = RunFolder("train", output, resume=resume, results=SETTINGS)
    part = options.part(shard)
    unreadable = []

    def on_error(path: Path | Address, error: InputError) -> None:
        fail(str(error))
        unreadable.append(path)

    session = open_session(root, replace(spec, method=method), settings, on_error=on_error)
    training_view.announce(session)
    for remark in remarks(session):
        warn(remark)
    if dry_run:
        training_view.estimate(session)
        return
    with training_view.interruptible() as stopped:
        left = session.encode(part=part, on_error=on_error, stop=stopped, track=track)
        if stopped():
            training_view.stopped_encoding(left)
            raise typer.Exit(130)
        if part is None:
            with training_view.learning(session) as view:
                trained = learn(
                    session,
                    run,
                    tensorboard=show_in_tensorboard,
                    on_record=view.record,
                    on_start=view.start,
                    stop=stopped,
                )
            training_view.result(session, trained)
            if not trained.finished:
                raise typer.Exit(130)
        else:
            out().print(f"shard {part[0]}/{part[1]} is done; when all are, train without --shard")
    if unreadable:
        count = "1 file" if len(unreadable) == 1 else f"{len(unreadable)} files"
        fail(f"skipped because they cannot be used: {count}")
        raise typer.Exit(1)
