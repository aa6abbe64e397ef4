"""`train`: learns prompts on a data set's masks, from a folder of images to prompts that a detector takes."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, InputError
from anomalyclip.progress import Track, silent
from anomalyclip.runs import SETTINGS, RunFolder
from anomalyclip.settings import chosen
from anomalyclip.spec import DetectorSpec
from anomalyclip.training.journal import best_epoch, read_journal
from anomalyclip.training.plots import draw_losses
from anomalyclip.training.session import Session, open_session
from anomalyclip.training.settings import TrainingSettings
from anomalyclip.training.tracking import TensorBoard
from anomalyclip.training.trainer import Trainer

OnRecord = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class TrainingRun:
    """What a run left.

    Attributes
    ----------
    folder : Path
        With ``prompts.safetensors``, ``prompts.pth`` (the published form), ``config.yaml``, ``metrics.jsonl``,
        ``loss.png`` and ``checkpoints/``.
    finished : bool
        Whether all epochs are done; if not, `resume` goes on.
    epoch, step, steps_per_epoch : int
        How far it is.
    epochs : list of dict
        The lines of ``metrics.jsonl`` that sum up an epoch: losses, ``text_cosine``, figures of held-out images.
    best_epoch : int or None
        The best one on the held-out images, if there were any.
    """

    folder: Path
    finished: bool
    epoch: int
    step: int
    steps_per_epoch: int
    epochs: list[dict[str, Any]]
    best_epoch: int | None

    @property
    def prompts(self) -> Path:
        """The learned prompts, for ``DetectorSpec(prompts=...)``; there once the run is finished."""
        return self.folder / "prompts.safetensors"


def train(
    data: str | os.PathLike[str],
    spec: DetectorSpec | None = None,
    settings: TrainingSettings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    on_error: Callable[[Path, InputError], None] | None = None,
    on_record: OnRecord = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
    track: Track = silent,
    **choices: Any,
) -> TrainingRun:
    """Learn the two prompts on a data set's masks.

    Each image is encoded once; its features are kept for this and every later run.

    Parameters
    ----------
    data : path
        Folder of the data set.
    spec : DetectorSpec, optional
        Backbone, image size, layers, DPAM layers, device and precision.
    settings : TrainingSettings, optional
        What to learn from and how. None: the published defaults.
    output : path, optional
        The run's folder. None: a new one, ``runs/train-1``, ``-2``, ...
    resume : bool
        Go on with the run in `output`: it ends with the same bytes as one that was never stopped.
    tensorboard : bool
        Also write TensorBoard curves.
    on_error : callable, optional
        Called with an image that cannot be used and the error, and it is left out. None: the error is raised.
    on_record : callable
        Called with every line of ``metrics.jsonl``.
    stop : callable
        Asked before each image and after each step; true saves, and ends the run there.
    track : Track
        Told how far the encoding is.
    **choices
        Single fields of `TrainingSettings` (epochs, batch_size, learning_rate, phase, init_prompts, val_fraction,
        cache, ...); they go before `settings`.

    Returns
    -------
    TrainingRun

    Raises
    ------
    AnomalyCLIPError
        An option is unknown or cannot be used, there is nothing to learn from, the folder holds another run, the loss
        is not finite, or a file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from anomalyclip.data.synthetic.writer import write_dataset
    >>> folder = tempfile.mkdtemp()
    >>> count = write_dataset(f"{folder}/parts", ["slate"], normal=2, anomalous=2, seed=1)
    >>> run = train(f"{folder}/parts", DetectorSpec("micro"), output=f"{folder}/run", cache=f"{folder}/cache", epochs=2)
    >>> run.finished, len(run.epochs), run.prompts.name
    (True, 2, 'prompts.safetensors')
    """
    folder = RunFolder("train", output, resume=resume, results=SETTINGS)
    settings = chosen(TrainingSettings, settings, choices)
    told = on_error or _raise
    session = open_session(Path(data), spec or DetectorSpec(), settings, on_error=told)
    for remark in remarks(session):
        warnings.warn(remark, AnomalyCLIPWarning, stacklevel=2)
    if session.encode(on_error=told, stop=stop, track=track):
        raise AnomalyCLIPError("stopped before all images were encoded; what is encoded is kept")
    return learn(session, folder, tensorboard=tensorboard, on_record=on_record, stop=stop)


def _raise(path: Path, error: InputError) -> None:
    raise error


def remarks(session: Session) -> list[str]:
    """Return what the user should know of a session before it costs anything."""
    return [*session.remarks, *(session.data().remarks() if session.images else [])]


def learn(
    session: Session,
    folder: RunFolder,
    *,
    tensorboard: bool = False,
    on_record: OnRecord = lambda record: None,
    on_start: Callable[[Trainer], None] = lambda trainer: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainingRun:
    """Learn from a session whose images are encoded; the second half of `train`.

    Parameters
    ----------
    session : Session
    folder : RunFolder
        Where; it is locked meanwhile.
    tensorboard, on_record, stop
        As for `train`.
    on_start : callable
        Called with the trainer before its first step.

    Returns
    -------
    TrainingRun

    Raises
    ------
    AnomalyCLIPError
        As `train`.

    Warns
    -----
    AnomalyCLIPWarning
        There is no ``loss.png``, since matplotlib is not installed.
    """
    observers = [on_record]

    def observe(record: Mapping[str, Any]) -> None:
        for observer in observers:
            observer(record)

    with folder.begin(session.determinants()) as place, ExitStack() as stack:
        trainer = session.trainer(place, resume=folder.resume, on_record=observe)
        if tensorboard:
            observers.append(stack.enter_context(_curves(place, trainer)))
        on_start(trainer)
        finished = trainer.run(stop=stop)
        if draw_losses(place) is None:
            message = "no loss.png: it needs matplotlib (pip install 'anomalyclip[report]')"
            warnings.warn(message, AnomalyCLIPWarning, stacklevel=2)
        _, epochs = read_journal(place)
    steps = trainer.steps_per_epoch
    return TrainingRun(place, finished, trainer.epoch, trainer.step, steps, epochs, best_epoch(epochs))


@contextmanager
def _curves(place: Path, trainer: Trainer) -> Iterator[OnRecord]:
    """Give what writes TensorBoard curves."""
    done = (trainer.epoch - 1) * trainer.steps_per_epoch + trainer.step
    log = TensorBoard(place, steps_per_epoch=trainer.steps_per_epoch, done=done)
    try:
        yield log.write
    finally:
        log.close()
