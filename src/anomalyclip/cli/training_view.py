"""What ``anomalyclip train`` shows: what is learned from, how it goes, what came of it."""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalyclip.cli.console import err, out

if TYPE_CHECKING:
    from anomalyclip.training.run import TrainingRun
    from anomalyclip.training.session import Session
    from anomalyclip.training.trainer import Trainer


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C (or SIGTERM) came; the second one ends the process as usual."""
    came = False

    def note(number: int, _: object) -> None:
        nonlocal came
        came = True
        signal.signal(number, before[number])
        err().print("stopping after this step (press again to stop at once) ...")

    before: dict[int, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def announce(session: "Session") -> None:
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


def estimate(session: "Session") -> None:
    """Print how long it would take."""
    estimate, settings = session.estimate(), session.settings
    store = session.store
    store.check_room(len(store.missing(session.all_images)))
    out().print(
        f"time, from a few images: {_duration(estimate.encode_all)} to encode ({estimate.encode:.2f} s per image), "
        f"{_duration(estimate.learn_all)} for {settings.epochs} epochs ({estimate.step:.2f} s per step of "
        f"{settings.batch_size})"
    )
    out().print("nothing was written")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def stopped_encoding(left: int) -> None:
    """Print how to continue."""
    out().print(f"stopped; {left} images are left to encode. To continue, run the same command: {_command()}")


class _Learning:
    """A bar with the steps, and a line per epoch."""

    def __init__(self, session: "Session", progress: Any) -> None:
        self._session, self._progress, self._task = session, progress, None

    def start(self, trainer: "Trainer") -> None:
        """Show where the run is."""
        per_epoch = trainer.steps_per_epoch
        done = (trainer.epoch - 1) * per_epoch + trainer.step
        total = self._session.settings.epochs * per_epoch
        self._task = self._progress.add_task("Learning", total=total, completed=done)

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        if "step" not in record:
            _print_epoch(record)
            return
        losses = (
            f"loss {record['loss']:.3f} (image {record['image_loss']:.3f}, pixels {record['local_loss']:.3f})"
        )
        self._progress.update(self._task, advance=1, description=f"Epoch {record['epoch']}, {losses}")


@contextmanager
def learning(session: "Session") -> Iterator[_Learning]:
    """Give what shows the learning; a bar on a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True, disable=not err().is_terminal) as progress:
        yield _Learning(session, progress)


def _print_epoch(record: Mapping[str, Any]) -> None:
    names = {"val_image_auroc": "image AUROC", "val_pixel_auroc": "pixel AUROC"}
    measured = "".join(f", {title} {record[name]:.4f}" for name, title in names.items() if name in record)
    best = " (best so far)" if record.get("best") else ""
    out().print(
        f"epoch {record['epoch']}: loss {record['loss']:.4f} (image {record['image_loss']:.4f}, "
        f"pixels {record['local_loss']:.4f}){measured}{best}"
    )


def result(session: "Session", run: "TrainingRun") -> None:
    """Print what came of it, or how to continue."""
    if not run.finished:
        out().print(
            f"stopped and saved in epoch {run.epoch} of {session.settings.epochs}, after step {run.step} of "
            f"{run.steps_per_epoch}; to continue: {_command(run.folder)}"
        )
        return
    if (now := run.epochs[-1].get("text_cosine")) is not None:
        out().print(
            f"cosine between the two texts: {session.before['text_cosine']:.3f} at the start, {now:.3f} now"
        )
    if run.best_epoch:
        out().print(
            f"best epoch on the held-out images: {run.best_epoch} "
            f"(checkpoints/epoch_{run.best_epoch:02d}.safetensors)"
        )
    published = " (published form: prompts.pth)" if run.learned.stem == "prompts" else ""
    out().print(f"{run.learned.stem} of the last epoch: {run.learned}{published}")


def _command(folder: Path | None = None) -> str:
    """Return the command that goes on with this run."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    if folder is not None:
        if not any(argument == "--output" or argument.startswith("--output=") for argument in arguments):
            arguments += ["--output", str(folder)]
        arguments += ["--resume"]
    return shlex.join(["anomalyclip", *arguments])
