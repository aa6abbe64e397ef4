"""`train`: learn prompts on a data set with masks, from a folder of images to prompts for a detector."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalyclip.addresses import Address
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, InputError
from anomalyclip.evaluation.plots import warn_unavailable
from anomalyclip.progress import Track, silent
from anomalyclip.runs import SETTINGS, RunFolder
from anomalyclip.settings import chosen
from anomalyclip.spec import DetectorSpec
from anomalyclip.training.journal import best_epoch, read_journal
from anomalyclip.training.plots import draw_losses
from anomalyclip.training.samples import OnUnreadable
from anomalyclip.training.session import Session, open_session
from anomalyclip.training.settings import TrainingSettings
from anomalyclip.training.tracking import TensorBoard
from anomalyclip.training.trainer import Trainer

OnRecord = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class TrainingRun:
    """Result of a training run.

    Attributes
    ----------
    folder : Path
        Has ``prompts.safetensors``, ``prompts.pth`` (the published format), ``config.yaml``, ``metrics.jsonl``,
        ``loss.png`` and ``checkpoints/``.
    finished : bool
        Whether all epochs are done; if not, `resume` continues the run.
    epoch, step, steps_per_epoch : int
        Progress of the run.
    epochs : list of dict
        The lines of ``metrics.jsonl`` that summarise an epoch: losses, ``text_cosine``, metrics of held-out images.
    best_epoch : int or None
        The best epoch on the held-out images, if there were any.
    name : str
        Of the file with what was learned: ``prompts``, ``layers`` (april-gan) or ``context`` (coop).
    """

    folder: Path
    finished: bool
    epoch: int
    step: int
    steps_per_epoch: int
    epochs: list[dict[str, Any]]
    best_epoch: int | None
    name: str = "prompts"

    @property
    def learned(self) -> Path:
        """File with what was learned; it exists once the run is finished."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def prompts(self) -> Path:
        """The same, for ``DetectorSpec(prompts=...)``; methods other than ``anomalyclip`` take it as `trained`."""
        return self.learned


def train(
    data: str | os.PathLike[str],
    spec: DetectorSpec | None = None,
    settings: TrainingSettings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    on_error: OnUnreadable | None = None,
    on_record: OnRecord = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
    track: Track = silent,
    **choices: Any,
) -> TrainingRun:
    """Learn the two prompts on a data set with masks.

    Each image is encoded once; its features are cached for this run and later ones.

    Parameters
    ----------
    data : path
        Folder of the data set.
    spec : DetectorSpec, optional
        Method (anomalyclip, april-gan or coop), backbone, image size, layers, device, precision and what else the
        method's training uses.
    settings : TrainingSettings, optional
        What to learn from and how. None: the published defaults.
    output : path, optional
        The run's folder. None: a new one, ``runs/train-1``, ``-2``, ...
    resume : bool
        Continue the run in `output`. The result has the same bytes as that of an uninterrupted run.
    tensorboard : bool
        Also write TensorBoard curves.
    on_error : callable, optional
        Called with an image that cannot be used and the error; the image is skipped. None: the error is raised.
    on_record : callable
        Called with every line of ``metrics.jsonl``.
    stop : callable
        Called before each image and after each step; if it returns true, the run is saved and stops.
    track : Track
        Receives the progress of the encoding.
    **choices
        Single fields of `TrainingSettings` (epochs, batch_size, learning_rate, phase, init_prompts, val_fraction,
        cache, ...); they override `settings`.

    Returns
    -------
    TrainingRun

    Raises
    ------
    AnomalyCLIPError
        An option is unknown or cannot be used, there are no images to train on, the folder contains another run, the
        loss is NaN or infinite, or a file cannot be written.

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
    session = open_session(data, spec or DetectorSpec(), settings, on_error=told)
    for remark in remarks(session):
        warnings.warn(remark, AnomalyCLIPWarning, stacklevel=2)
    if session.encode(on_error=told, stop=stop, track=track):
        raise AnomalyCLIPError("stopped before all images were encoded; images already encoded are kept")
    return learn(session, folder, tensorboard=tensorboard, on_record=on_record, stop=stop)


def _raise(path: Path | Address, error: InputError) -> None:
    raise error


def remarks(session: Session) -> list[str]:
    """Return what the user should know about a session before it starts."""
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
    """Train on a session whose images are encoded; the second half of `train`.

    Parameters
    ----------
    session : Session
    folder : RunFolder
        The run's folder; it is locked while training.
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
        ``loss.png`` was not drawn because matplotlib is not installed.
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
            warn_unavailable("there is no loss.png")
        _, epochs = read_journal(place)
    steps = trainer.steps_per_epoch
    best = best_epoch(epochs)
    return TrainingRun(place, finished, trainer.epoch, trainer.step, steps, epochs, best, session.task.name)


@contextmanager
def _curves(place: Path, trainer: Trainer) -> Iterator[OnRecord]:
    """Yield a writer of TensorBoard curves."""
    done = (trainer.epoch - 1) * trainer.steps_per_epoch + trainer.step
    log = TensorBoard(place, steps_per_epoch=trainer.steps_per_epoch, done=done)
    try:
        yield log.write
    finally:
        log.close()
