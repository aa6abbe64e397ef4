"""``anomalyclip train``: learn prompts on a data set with masks."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from anomalyclip.cli import options, training_view
from anomalyclip.cli.console import fail, out, track, warn
from anomalyclip.errors import InputError
from anomalyclip.spec import DetectorSpec

_LEARNING = "Learning"
_PROMPTS = "Prompts"
_FEATURES = "Features"
_VALIDATION = "Validation"


class FeatureType(str, Enum):
    """Type of the numbers in the feature cache."""

    float16 = "float16"
    float32 = "float32"


@options.with_spec(only=("backbone", "image_size", "layers", "dpam_layers", "device", "precision"))
def train(
    context: typer.Context,
    spec: DetectorSpec,
    root: Annotated[Path, typer.Argument(help="Folder of the data set.", show_default=False)],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Its key (see `anomalyclip datasets`). Default: by its layout.", show_default=False
        ),
    ] = None,
    phase: Annotated[
        str,
        typer.Option(
            help="Split to learn from, train or test; test, as published, has the anomalies and masks."
        ),
    ] = "test",
    output: options.Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done and how long it would take; write nothing."),
    ] = False,
    show_in_tensorboard: Annotated[
        bool, typer.Option("--track", help="Also write TensorBoard curves.")
    ] = False,
    epochs: Annotated[
        int, typer.Option(help="Passes over the images.", min=1, rich_help_panel=_LEARNING)
    ] = 15,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=1, rich_help_panel=_LEARNING)] = 8,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.", rich_help_panel=_LEARNING)] = 1e-3,
    local_weight: Annotated[
        float, typer.Option(help="Weight of the pixels' loss (lambda).", rich_help_panel=_LEARNING)
    ] = 4.0,
    seed: Annotated[
        int,
        typer.Option(help="Of the prompts to start from and the order of images.", rich_help_panel=_LEARNING),
    ] = 111,
    init_prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts to start from: a name or a file.", show_default=False, rich_help_panel=_PROMPTS
        ),
    ] = None,
    prompt_length: Annotated[
        int | None,
        typer.Option(
            help="Learned vectors a prompt. Default: 12.", show_default=False, rich_help_panel=_PROMPTS
        ),
    ] = None,
    prompt_depth: Annotated[
        int | None,
        typer.Option(
            help="Text blocks that see learned tokens. Default: 9, or all that the backbone has.",
            show_default=False,
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    deep_length: Annotated[
        int | None,
        typer.Option(
            help="Learned tokens in each of these blocks. Default: 4.",
            show_default=False,
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the features of all runs. Default: features in the user's cache folder.",
            show_default=False,
            file_okay=False,
            rich_help_panel=_FEATURES,
        ),
    ] = None,
    feature_type: Annotated[
        FeatureType, typer.Option(help="Of the kept features.", rich_help_panel=_FEATURES)
    ] = FeatureType.float16,
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/N: encode the I-th of N parts of the images and end; for several processes.",
            show_default=False,
            rich_help_panel=_FEATURES,
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the images to hold out, between 0 and 1; not with --val-root. Default: none.",
            show_default=False,
            rich_help_panel=_VALIDATION,
        ),
    ] = None,
    val_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another data set to evaluate on.", show_default=False, rich_help_panel=_VALIDATION
        ),
    ] = None,
    val_dataset: Annotated[
        str | None,
        typer.Option(help="Key of that data set.", show_default=False, rich_help_panel=_VALIDATION),
    ] = None,
) -> None:
    """Learn the two prompts on a data set's masks.

    Each image is encoded once; its features are kept for this and every later run. OUTPUT gets prompts.safetensors,
    prompts.pth (the published form), config.yaml, metrics.jsonl, loss.png and checkpoints. Ctrl-C saves.
    """
    from anomalyclip.runs import SETTINGS, RunFolder
    from anomalyclip.training.run import learn, remarks
    from anomalyclip.training.session import SessionOptions, open_session
    from anomalyclip.training.trainer import TrainingSettings

    run = RunFolder("train", output, resume=resume, results=SETTINGS)
    part = options.part(shard)
    unreadable = []

    def on_error(path: Path, error: InputError) -> None:
        fail(str(error))
        unreadable.append(path)

    chosen = SessionOptions(
        root,
        spec,
        dataset=dataset,
        phase=phase,
        init_prompts=init_prompts,
        prompt_length=prompt_length,
        prompt_depth=prompt_depth,
        deep_length=deep_length,
        cache=cache,
        feature_dtype=feature_type.value,
        val_fraction=val_fraction,
        val_root=val_root,
        val_dataset=val_dataset,
    )
    settings = TrainingSettings(epochs, batch_size, learning_rate, local_weight=local_weight, seed=seed)
    session = open_session(chosen, settings, on_error=on_error)
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
        fail(f"{len(unreadable)} images could not be used and were left out")
        raise typer.Exit(1)
