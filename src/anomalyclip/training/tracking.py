"""TensorBoard curves of a training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalyclip.errors import AnomalyCLIPError


class TensorBoard:
    """Writes the lines of ``metrics.jsonl`` as TensorBoard scalars into ``tensorboard/`` of the run folder.

    Parameters
    ----------
    folder : Path
        The run folder.
    steps_per_epoch : int
        Number of batches per epoch.
    done : int
        Steps already done by an earlier process; later steps that it logged are discarded.

    Raises
    ------
    AnomalyCLIPError
        TensorBoard is not installed, or cannot write to a folder of this name.
    """

    def __init__(self, folder: Path, *, steps_per_epoch: int, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise AnomalyCLIPError("--track needs TensorBoard: pip install 'anomalyclip[track]'") from None
        self._steps_per_epoch = steps_per_epoch
        try:
            self._writer = SummaryWriter(folder / "tensorboard", purge_step=done + 1)
        except UnicodeEncodeError:
            raise AnomalyCLIPError(
                f"{folder}: TensorBoard takes only paths in UTF-8: choose another folder, or leave out --track"
            ) from None

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line of the journal."""
        kind = "step" if "step" in record else "epoch"
        moment = (record["epoch"] - 1) * self._steps_per_epoch + record.get("step", self._steps_per_epoch)
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{kind}/{name}", value, moment)

    def close(self) -> None:
        """Write all pending data."""
        self._writer.close()
