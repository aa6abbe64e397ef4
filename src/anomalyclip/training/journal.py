"""``metrics.jsonl``: one line per step and per epoch; none is lost or repeated when a killed run is resumed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalyclip.files import writing

FILE_NAME = "metrics.jsonl"


class Journal:
    """An append-only file of JSON lines that can be cut back to an earlier length.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    length : int
        Number of bytes to keep; the rest is cut off. 0 starts a new file.

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
    ...     path.read_text().splitlines()
    ['{"step": 1}', '{"step": 2}']
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
    """Return a run's lines, those of steps and those of epochs."""
    with (folder / FILE_NAME).open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [record for record in records if "step" in record], [
        record for record in records if "step" not in record
    ]


def best_epoch(epochs: list[dict[str, Any]]) -> int | None:
    """Return the best epoch among a journal's epoch lines, or None without validation."""
    return max((record["epoch"] for record in epochs if record.get("best")), default=None)
