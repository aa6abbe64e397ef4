"""The trainer: what is learned, optimiser and position; a checkpoint stores them all, so stopping loses no work.

All randomness is drawn from (seed, epoch), so the position alone determines the next step.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyclip.clip.checkpoints import load_checkpoint
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import open_output, replacing, writing
from anomalyclip.training.batches import TrainingData
from anomalyclip.training.journal import FILE_NAME, Journal, read_journal
from anomalyclip.training.learning import Losses, Optimizer
from anomalyclip.training.settings import Learning
from anomalyclip.training.task import Task
from anomalyclip.training.validation import Validation, quality

STATE = "checkpoints/state.pt"
"""The checkpoint that a run is resumed from, relative to its folder."""


def epoch_groups(count: int, settings: Learning, epoch: int) -> list[NDArray[np.int64]]:
    """Return the shuffled indices of an epoch's batches.

    Examples
    --------
    >>> [len(group) for group in epoch_groups(17, Learning(), 1)]
    [8, 8, 1]
    """
    order = np.random.default_rng([settings.seed, epoch]).permutation(count)
    return np.split(order, range(settings.batch_size, count, settings.batch_size))


class Trainer:
    """Trains a method's part on cached features, in a run folder.

    Parameters
    ----------
    task : Task
        What is learned, from where it starts.
    data : TrainingData
        The training data.
    settings : Learning
        The hyperparameters.
    folder : Path
        The run folder. ``metrics.jsonl`` and ``checkpoints/`` are written to it, and at the end what was learned, for
        example ``prompts.safetensors`` and ``prompts.pth``.
    info : mapping of str to str
        Stored with what was learned.
    validation : Validation, optional
        Held-out images, evaluated after each epoch.
    on_record : callable
        Called with every line of ``metrics.jsonl``.
    """

    def __init__(
        self,
        task: Task,
        data: TrainingData,
        settings: Learning,
        folder: Path,
        *,
        info: Mapping[str, str],
        validation: Validation | None = None,
        on_record: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        self.task = task.to(data.store.scorer.device)
        self.data, self.settings, self.folder, self.info = data, settings, folder, info
        self.learner = task.learner
        self.optimizer = Optimizer(
            task.learner.parameters(),
            task.losses,
            learning_rate=settings.learning_rate,
            betas=settings.betas,
        )
        self.epoch, self.step = 1, 0
        """The current epoch, counted from 1, and the number of its steps that are done."""
        self._validation, self._on_record = validation, on_record
        self._sums = [0.0] * len(Losses._fields)
        self._best: float | None = None
        self._journal_bytes = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self.data) // self.settings.batch_size)

    def resume(self) -> bool:
        """Resume the run in the folder; return whether there was one.

        The number of threads is set to that of the earlier process, since the last bits of sums depend on it.

        Raises
        ------
        AnomalyCLIPError
            The checkpoint cannot be read.
        """
        for leftover in self.folder.rglob(".*.tmp"):  # left by a process that was killed while writing
            leftover.unlink()
        path = self.folder / STATE
        if not path.is_file():
            return False
        try:
            state = load_checkpoint(path, device=self.data.store.scorer.device)
            self.learner.load_state_dict(state["learner"])
            self.optimizer.adam.load_state_dict(state["optimizer"])
            counts = [state[name] for name in ("epoch", "steps", "journal_bytes", "threads")]
            best, sums = state["best"], [float(value) for value in state["sums"]]
            if not all(isinstance(count, int) for count in counts) or len(sums) != len(self._sums):
                raise TypeError("its counts are no integers")
            self.epoch, self.step, self._journal_bytes, threads = counts
            self._best, self._sums = None if best is None else float(best), sums
            torch.set_num_threads(threads)
        except Exception as error:  # what a damaged checkpoint raises depends on the damage
            raise AnomalyCLIPError(
                f"{path}: cannot resume from this checkpoint ({type(error).__name__}); start again in another folder, "
                "cached features are reused"
            ) from None
        return True

    def save(self, journal: Journal) -> None:
        """Write the checkpoint, after everything it refers to has been written to disk."""
        state = {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.adam.state_dict(),
            "epoch": self.epoch,
            "steps": self.step,  # not "step": Adam's state has that key, and pickle may write it once or twice
            "sums": self._sums,
            "best": self._best,
            "journal_bytes": journal.sync(),
            "threads": torch.get_num_threads(),
        }
        path = self.folder / STATE
        # PyTorch writes a file's name into the archive; without a name, equal states give equal bytes.
        with writing(path), replacing(path) as temporary, open_output(temporary) as file:
            torch.save(state, file)

    def run(self, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train until the last epoch is done, then write what was learned.

        Parameters
        ----------
        stop : callable
            Called after each step; if it returns true, a checkpoint is saved and the run stops.

        Returns
        -------
        bool
            Whether the last epoch is done.

        Raises
        ------
        AnomalyCLIPError
            The loss is NaN or infinite, or a file cannot be read or written.
        """
        deterministic = _deterministic(strict=self.data.store.scorer.device.type == "cpu")
        with deterministic, Journal(self.folder / FILE_NAME, length=self._journal_bytes) as journal:
            read_journal(self.folder)  # a damaged line is refused now, and not at the end
            if (self.epoch, self.step) == (1, 0):
                self.save(journal)
            while self.epoch <= self.settings.epochs:
                finished = self._run_epoch(journal, stop)
                self.save(journal)
                if not finished:
                    return False
        self.task.finish(self.folder, self.info)
        return True

    def _run_epoch(self, journal: Journal, stop: Callable[[], bool]) -> bool:
        """Finish the current epoch; return False if it was stopped."""
        groups = epoch_groups(len(self.data), self.settings, self.epoch)
        for batch in self.data.batches(groups[self.step :]):
            moment = f"step {self.step + 1} of epoch {self.epoch}"
            losses = self.optimizer.step(batch, moment=moment)
            self._sums = [total + value for total, value in zip(self._sums, losses, strict=True)]
            self.step += 1
            self._record(journal, {"epoch": self.epoch, "step": self.step, **losses._asdict()})
            if self.step < len(groups) and stop():
                return False
        means = Losses(*(total / len(groups) for total in self._sums))
        self._record(journal, {"epoch": self.epoch, **means._asdict(), **self._evaluate()})
        path = self.folder / "checkpoints" / f"epoch_{self.epoch:02d}.safetensors"
        with writing(path):
            self.task.save(path, {**self.info, "epoch": str(self.epoch)})
        self.epoch, self.step, self._sums = self.epoch + 1, 0, [0.0] * len(Losses._fields)
        return not stop() or self.epoch > self.settings.epochs

    def _evaluate(self) -> dict[str, float | bool]:
        """Return the values of an epoch's line other than the losses."""
        with torch.inference_mode():
            results: dict[str, float | bool] = {**self.task.summary()}
            if self._validation is None:
                return results
            measured = self._validation.measure(self.task.detector())
        reached = quality(measured)
        best = reached is not None and (self._best is None or reached > self._best)
        if best:
            self._best = reached
        return {**results, **measured, "best": best}

    def _record(self, journal: Journal, record: Mapping[str, Any]) -> None:
        journal.write(record)
        self._on_record(record)


@contextmanager
def _deterministic(*, strict: bool) -> Iterator[None]:
    """Make PyTorch use deterministic algorithms; without `strict`, only where it has one."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
