"""``metrics.jsonl``: one line per step and per epoch; none is lost or repeated when a killed run is resumed."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json, writing

FILE_NAME = "metrics.jsonl"

LOSSES = ("loss", "image_loss", "local_loss")
"""What every line has beside the epoch."""


class Journal:
    """An append-only file of JSON lines that can be cut back to an earlier length.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    length : int
        Number of bytes to keep; the rest is cut off. 0 starts a new file.

    Raises
    ------
    AnomalyCLIPError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     with Journal(path) as journal:
    ...         journal.write({"step": 1})
    ...         kept = journal.sync()
    ...         journal.write({"step": 2})
    ...     with Journal(path, length=kept) as journal:
    ...         journal.write({"step": 2})
    ...     [json.loads(text)["step"] for text in path.read_text().splitlines()]
    [1, 2]
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        self.path = path
        with writing(path):
            self._file = path.open("ab")
            self._file.truncate(length)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        with writing(self.path):
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()

    def sync(self) -> int:
        """Write everything to disk and return the file's length."""
        with writing(self.path):
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size


def read_journal(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a run's lines, those of steps and those of epochs.

    Raises
    ------
    AnomalyCLIPError
        A line is damaged; it names the line.
    """
    records = list(_lines(folder / FILE_NAME))
    return [record for record in records if "step" in record], [
        record for record in records if "step" not in record
    ]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = dict(parse_json(line))
                counts, losses = [record["epoch"], record.get("step", 1)], [record[name] for name in LOSSES]
                if not all(isinstance(count, int) and count > 0 for count in counts):
                    raise ValueError("epoch and step are not counts from 1")
                if not all(isinstance(loss, int | float) for loss in losses):
                    raise ValueError("a loss is no number")
            except (ValueError, TypeError, KeyError) as error:
                why = f"no {error}" if isinstance(error, KeyError) else error
                raise AnomalyCLIPError(
                    f"{path}, line {number} is damaged ({why}); start again in another folder, cached features are "
                    "reused"
                ) from None
            yield record


def best_epoch(epochs: list[dict[str, Any]]) -> int | None:
    """Return the best epoch among a journal's epoch lines, or None without validation."""
    return max((record["epoch"] for record in epochs if record.get("best")), default=None)
