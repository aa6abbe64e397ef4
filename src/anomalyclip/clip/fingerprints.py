"""Fingerprints of weight files, remembered: a gigabyte is hashed once, not at every start."""

import json
import os
import re
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from anomalyclip.clip.download import cache_folder
from anomalyclip.clip.weights import fingerprint, read_weights, weight_files
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing

REMEMBERED_FROM = 64_000_000
"""Bytes from which a fingerprint is remembered; smaller files are hashed in a moment."""

_SETTLED = 2.0
"""Seconds that a file must have been left alone: within the clock's tick it could change and keep its time."""


def of_file(source: Path) -> Callable[[], str]:
    """Return what gives the fingerprint of a weight file, of the content that it has now.

    It is hashed when it is first asked for, and remembered in the cache folder by path, size, inode and times of all
    files that it consists of.

    Parameters
    ----------
    source : Path
        File or folder, as `anomalyclip.clip.weights.read_weights` takes it.

    Returns
    -------
    callable
        Gives 64 hex digits (`anomalyclip.clip.weights.fingerprint`), or raises `AnomalyCLIPError` if the files were
        changed in between.
    """
    seen = _state(source)

    def compute() -> str:
        _refuse_other(source, seen)
        if known := _remembered(source, seen):
            return known
        lasting = _is_lasting(seen)  # judged before reading, which takes long enough to settle
        weights = read_weights(source)
        found = fingerprint(weights.config, weights.state_dict)
        _refuse_other(source, seen)  # than what was hashed just now
        if lasting:
            _remember(source, {"files": seen, "sha256": found})
        return found

    return compute


def _state(source: Path) -> list[Any]:
    """Return what changes when one of the files does, or when one comes or goes."""
    status = [(file, file.stat()) for file in weight_files(source) if file.is_file()]
    return [[os.path.abspath(file), s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for file, s in status]


def _refuse_other(source: Path, seen: list[Any]) -> None:
    if _state(source) != seen:
        raise AnomalyCLIPError(f"{source}: was changed while it was in use; start again")


def _note(source: Path) -> Path:
    return cache_folder() / "fingerprints" / f"{sha256(os.path.abspath(source).encode()).hexdigest()}.json"


def _remembered(source: Path, seen: list[Any]) -> str | None:
    try:
        note = json.loads(_note(source).read_text())
        known = str(note["sha256"])
        return known if note["files"] == seen and re.fullmatch("[0-9a-f]{64}", known) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_lasting(seen: list[Any]) -> bool:
    """Tell whether files are large enough to remember, and old enough that no change of theirs would look the same."""
    newest = max(moment for *_, modified, changed in seen for moment in (modified, changed))
    settled = time.time_ns() - newest > _SETTLED * 1e9
    return bool(settled and sum(size for _, size, *_ in seen) >= REMEMBERED_FROM)


def _remember(source: Path, note: dict[str, Any]) -> None:
    try:
        with replacing(_note(source)) as temporary:
            temporary.write_text(json.dumps(note))
    except OSError:  # a cache that cannot be written to costs time, nothing else
        return
