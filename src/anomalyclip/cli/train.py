"""``anomalyclip train``: learn prompts on a data set with masks."""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import err, fail, out, track, warn
from anomalyclip.errors import AnomalyCLIPError, InputError

if TYPE_CHECKING:
    from anomalyclip.training.session import Session
    from anomalyclip.training.trainer import Trainer

_LEARNING = "Learning"
_PROMPTS = "Prompts"
_FEATURES = "Features"
_VALIDATION = "Validation"


class FeatureType(str, Enum):
    """Type of the numbers in the feature cache."""

    float16 = "float16"
    float32 = "float32"


def train(
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
    backbone: options.Backbone = "ViT-L-14-336",
    image_size: options.ImageSize = None,
    layers: options.Layers = None,
    dpam_layers: options.DpamLayers = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
) -> None:
    """Learn the two prompts on a data set's masks.

    Each image is encoded once; its features are kept for this and every later run. OUTPUT gets prompts.safetensors,
    prompts.pth (the published form), config.yaml, metrics.jsonl, loss.png and checkpoints. Ctrl-C saves.
    """
    from anomalyclip.runs import alone, new_folder
    from anomalyclip.training.session import SessionOptions, open_session
    from anomalyclip.training.trainer import TrainingSettings

    if resume and output is None:
        raise AnomalyCLIPError("--resume needs the folder of the run: give --output FOLDER")
    part = _shard(shard)
    failures = _Failures()
    session = open_session(
        SessionOptions(
            root=root,
            dataset=dataset,
            phase=phase,
            backbone=backbone,
            init_prompts=init_prompts,
            prompt_length=prompt_length,
            prompt_depth=prompt_depth,
            deep_length=deep_length,
            image_size=image_size,
            layers=tuple(layers) if layers else None,
            dpam_layers=dpam_layers,
            device=device,
            precision=precision,
            cache=cache,
            feature_dtype=feature_type.value,
            val_fraction=val_fraction,
            val_root=val_root,
            val_dataset=val_dataset,
        ),
        TrainingSettings(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            local_weight=local_weight,
            seed=seed,
        ),
        on_error=failures,
        on_damage=warn,
    )
    _announce(session)
    if dry_run:
        _show_estimate(session)
        return
    with _interruptible() as stopped:
        _encode(session, part, failures, stopped)
        if part is None:
            folder = output or new_folder("train")
            with alone(folder):
                _learn(session, folder, resume=resume, tensorboard=show_in_tensorboard, stopped=stopped)
    if failures.count:
        fail(f"{failures.count} images could not be used and were left out")
        raise typer.Exit(1)


class _Failures:
    """Names images that cannot be used, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path, error: InputError) -> None:
        self.count += 1
        fail(str(error))


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise AnomalyCLIPError(f"--shard {text}: expected I/N with I from 1 to N, such as 1/4")
    return int(index), int(count)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C (or SIGTERM) came; the second one ends the process as usual."""
    came = False

    def note(number: int, _: object) -> None:
        nonlocal came
        came = True
        signal.signal(number, before[number])
        err().print("stopping after this step (once more: at once) ...")

    before: dict[int, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(session: "Session") -> None:
    """Print what is learned from, and what the cache has and will take."""
    from anomalyclip.training.features import readable_size

    images, store = session.images, session.store
    anomalous = [image for image in images if image.anomaly]
    masks = sum(image.mask is not None for image in anomalous)
    held_out = f"; {len(session.held_out)} held out" if session.held_out else ""
    out().print(
        f"{session.name}: {len(images)} images to learn from, {len(anomalous)} of them anomalous, {masks} with a mask"
        f"{held_out}"
    )
    everything = {image.digest for image in session.all_images}
    missing = len(store.missing(session.all_images))
    size = readable_size(missing * store.record_bytes)
    out().print(
        f"features: {len(everything) - missing} cached, {missing} to encode ({size}), in {store.folder}"
    )
    for remark in [*session.remarks, *(session.data().remarks() if images else [])]:
        warn(remark)


def _show_estimate(session: "Session") -> None:
    estimate, settings = session.estimate(), session.settings
    store = session.store
    store.check_room(len(store.missing(session.all_images)))
    out().print(
        f"time, from a few images: {_duration(estimate.encode_all)} to encode ({estimate.encode:.2f} s an image), "
        f"{_duration(estimate.learn_all)} for {settings.epochs} epochs ({estimate.step:.2f} s a step of "
        f"{settings.batch_size})"
    )
    out().print("nothing was written")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _encode(
    session: "Session", part: tuple[int, int] | None, failures: _Failures, stopped: Callable[[], bool]
) -> None:
    """Fill the cache; leave out the images that cannot be used."""
    store = session.store
    images = session.all_images if part is None else session.shard(*part)
    missing = len(store.missing(images))
    if missing:
        with track("Encoding", total=missing) as advance:
            session.drop(store.fill(images, on_error=failures, advance=advance, stop=stopped))
    if stopped():
        left = len(store.missing(images))
        out().print(f"stopped; {left} images are left to encode. The same command goes on: {_command()}")
        raise typer.Exit(130)
    if part is not None:
        out().print(f"shard {part[0]}/{part[1]} is done; when all are, train without --shard")


def _learn(
    session: "Session", folder: Path, *, resume: bool, tensorboard: bool, stopped: Callable[[], bool]
) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from anomalyclip.training.tracking import TensorBoard

    observers: list[Callable[[Mapping[str, Any]], None]] = [_print_epoch]

    def observe(record: Mapping[str, Any]) -> None:
        for observer in observers:
            observer(record)

    trainer = session.trainer(folder, resume=resume, on_record=observe)
    per_epoch = trainer.steps_per_epoch
    done = (trainer.epoch - 1) * per_epoch + trainer.step
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        if tensorboard:
            log = TensorBoard(folder, steps_per_epoch=per_epoch, done=done)
            stack.callback(log.close)
            observers.append(log.write)
        progress = stack.enter_context(
            Progress(*columns, console=err(), transient=True, disable=not err().is_terminal)
        )
        task = progress.add_task("Learning", total=session.settings.epochs * per_epoch, completed=done)
        observers.append(lambda record: _advance(progress, task, record))
        finished = trainer.run(stop=stopped)
    _finish(session, trainer, folder, finished=finished)


def _advance(progress: Any, task: Any, record: Mapping[str, Any]) -> None:
    if "step" in record:
        losses = (
            f"loss {record['loss']:.3f} (image {record['image_loss']:.3f}, pixels {record['local_loss']:.3f})"
        )
        progress.update(task, advance=1, description=f"Epoch {record['epoch']}, {losses}")


def _print_epoch(record: Mapping[str, Any]) -> None:
    if "step" in record:
        return
    names = {"val_image_auroc": "image AUROC", "val_pixel_auroc": "pixel AUROC"}
    measured = "".join(f", {title} {record[name]:.4f}" for name, title in names.items() if name in record)
    best = " (best so far)" if record.get("best") else ""
    out().print(
        f"epoch {record['epoch']}: loss {record['loss']:.4f} (image {record['image_loss']:.4f}, "
        f"pixels {record['local_loss']:.4f}){measured}{best}"
    )


def _finish(session: "Session", trainer: "Trainer", folder: Path, *, finished: bool) -> None:
    from anomalyclip.training.curves import best_epoch, draw_curves
    from anomalyclip.training.journal import read_journal

    if draw_curves(folder) is None:
        warn("no loss.png: it needs matplotlib (pip install 'anomalyclip[report]')")
    if not finished:
        out().print(
            f"stopped and saved in epoch {trainer.epoch} of {session.settings.epochs}, after step {trainer.step} of "
            f"{trainer.steps_per_epoch}; to go on: {_command(folder)}"
        )
        raise typer.Exit(130)
    _, epochs = read_journal(folder)
    before = float(session.scorer.text_features[0] @ session.scorer.text_features[1])
    out().print(
        f"cosine between the two texts: {before:.3f} at the start, {epochs[-1]['text_cosine']:.3f} now"
    )
    if best := best_epoch(epochs):
        out().print(f"best epoch on the held-out images: {best} (checkpoints/epoch_{best:02d}.safetensors)")
    out().print(f"prompts of the last epoch: {folder / 'prompts.safetensors'} (published form: prompts.pth)")


def _command(folder: Path | None = None) -> str:
    """Return the command that goes on with this run."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    if folder is not None:
        if not any(argument == "--output" or argument.startswith("--output=") for argument in arguments):
            arguments += ["--output", str(folder)]
        arguments += ["--resume"]
    return shlex.join(["anomalyclip", *arguments])
