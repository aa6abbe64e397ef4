"""The trainer: prompts, optimiser and position, which a checkpoint holds whole, so that a stop costs nothing.

Everything random is drawn from (seed, epoch), so that the position alone says what comes next.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyclip.clip.checkpoints import load_checkpoint
from anomalyclip.clip.model import CLIP
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing, writing
from anomalyclip.prompts import PromptLearner, Prompts
from anomalyclip.training.batches import TrainingData
from anomalyclip.training.journal import FILE_NAME, Journal
from anomalyclip.training.learning import Losses, PromptOptimizer
from anomalyclip.training.settings import Learning
from anomalyclip.training.validation import Validation, quality

STATE = "checkpoints/state.pt"
"""Where a run goes on from, in its folder."""


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
    """Learns prompts from cached features, in a run folder.

    Parameters
    ----------
    clip : CLIP
        The frozen model; its text tower is used.
    start : Prompts
        What to start from.
    data : TrainingData
        What to learn from.
    settings : Learning
        How.
    folder : Path
        The run folder. It gets ``metrics.jsonl``, ``checkpoints/`` and at the end ``prompts.safetensors`` and
        ``prompts.pth``.
    info : mapping of str to str
        Kept with the prompts.
    validation : Validation, optional
        Evaluated after each epoch.
    on_record : callable
        Called with every line of ``metrics.jsonl``.
    """

    def __init__(
        self,
        clip: CLIP,
        start: Prompts,
        data: TrainingData,
        settings: Learning,
        folder: Path,
        *,
        info: Mapping[str, str],
        validation: Validation | None = None,
        on_record: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        device = data.store.scorer.device
        self.clip = clip.to(device)
        self.data, self.settings, self.folder, self.info = data, settings, folder, info
        self.learner = PromptLearner(start).to(device)
        self.optimizer = PromptOptimizer(
            self.learner,
            self.clip,
            learning_rate=settings.learning_rate,
            betas=settings.betas,
            local_weight=settings.local_weight,
        )
        self.epoch, self.step = 1, 0
        """Epoch that is under way, counted from 1, and its steps that are done."""
        self._validation, self._on_record = validation, on_record
        self._sums = [0.0] * len(Losses._fields)
        self._best: float | None = None
        self._journal_bytes = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches."""
        return -(-len(self.data) // self.settings.batch_size)

    def resume(self) -> bool:
        """Take up the run that the folder holds; return whether there was one.

        The number of threads becomes that of the earlier process, since sums depend on it in their last bits.

        Raises
        ------
        AnomalyCLIPError
            Its checkpoint cannot be read.
        """
        for leftover in self.folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        path = self.folder / STATE
        if not path.is_file():
            return False
        try:
            state = load_checkpoint(path, device=self.data.store.scorer.device)
            self.learner.load_state_dict(state["learner"])
            self.optimizer.adam.load_state_dict(state["optimizer"])
            self.epoch, self.step, self._sums = state["epoch"], state["steps"], list(state["sums"])
            self._best, self._journal_bytes = state["best"], state["journal_bytes"]
            torch.set_num_threads(state["threads"])
        except Exception as error:  # what a damaged checkpoint raises depends on the damage
            raise AnomalyCLIPError(
                f"{path}: cannot be resumed from ({type(error).__name__}); begin anew in another folder, the features "
                "are kept"
            ) from None
        return True

    def save(self, journal: Journal) -> None:
        """Write the checkpoint; before it, everything that it refers to is on the disk."""
        state = {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.adam.state_dict(),
            "epoch": self.epoch,
            "steps": self.step,  # "step" is a name in Adam's state, and pickle would write it once or twice
            "sums": self._sums,
            "best": self._best,
            "journal_bytes": journal.sync(),
            "threads": torch.get_num_threads(),
        }
        path = self.folder / STATE
        # Given a name, PyTorch would write it into the archive; the same state is to give the same bytes.
        with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def run(self, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Learn until the last epoch is done, then write the prompts.

        Parameters
        ----------
        stop : callable
            Asked after each step; true saves a checkpoint and ends the run there.

        Returns
        -------
        bool
            Whether the prompts are finished.

        Raises
        ------
        AnomalyCLIPError
            The loss is not finite, or a file cannot be read or written.
        """
        deterministic = _deterministic(strict=self.data.store.scorer.device.type == "cpu")
        with deterministic, Journal(self.folder / FILE_NAME, length=self._journal_bytes) as journal:
            if (self.epoch, self.step) == (1, 0):
                self.save(journal)
            while self.epoch <= self.settings.epochs:
                finished = self._run_epoch(journal, stop)
                self.save(journal)
                if not finished:
                    return False
        prompts = self.learner.value(self.info)
        for path, write in (
            (self.folder / "prompts.safetensors", prompts.save),
            (self.folder / "prompts.pth", lambda path: prompts.save_published(path, self.clip)),
        ):
            with writing(path):
                write(path)
        return True

    def _run_epoch(self, journal: Journal, stop: Callable[[], bool]) -> bool:
        """Do the rest of the epoch under way; return False if it was stopped."""
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
            self.learner.value({**self.info, "epoch": str(self.epoch)}).save(path)
        self.epoch, self.step, self._sums = self.epoch + 1, 0, [0.0] * len(Losses._fields)
        return not stop() or self.epoch > self.settings.epochs

    def _evaluate(self) -> dict[str, float | bool]:
        """Return what an epoch's line says besides the losses."""
        with torch.inference_mode():
            text_features = self.learner(self.clip)
            results: dict[str, float | bool] = {"text_cosine": float(text_features[0] @ text_features[1])}
            if self._validation is None:
                return results
            measured = self._validation(text_features)
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
    """Let PyTorch use deterministic algorithms alone; not `strict`, as far as it has any."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
