"""Cached fingerprints of weight files: a gigabyte is hashed once, not at every start."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from anomalyclip.clip.download import cache_folder
from anomalyclip.clip.forms.settings import read_again
from anomalyclip.clip.weights import Architecture, fingerprint, read_weights, weight_files
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json, replacing

REMEMBERED_FROM = 64_000_000
"""Files of at least this many bytes have their fingerprint cached; smaller ones are hashed quickly."""

_SETTLED = 2.0
"""A file must be unchanged for this many seconds: within one tick of the clock it could change but keep its time."""


class Contents(Protocol):
    """Weights that were read: an architecture, and tensors by name."""

    @property
    def config(self) -> Architecture:
        """The architecture."""
        ...

    @property
    def state_dict(self) -> Mapping[str, Tensor]:
        """The tensors."""
        ...


def of_file(source: Path, read: Callable[[Path], Contents] | None = None) -> Callable[[], str]:
    """Return a function that computes the fingerprint of a weight file's present content.

    The content is hashed on the first call. The result is cached in the cache folder under the path, size, inode and
    times of all files that belong to the weights.

    Parameters
    ----------
    source : Path
        File or folder, as `read` takes it.
    read : callable, optional
        Reads the weights. None: `anomalyclip.clip.weights.read_weights`.

    Returns
    -------
    callable
        Returns 64 hex digits (`anomalyclip.clip.weights.fingerprint`), or raises `AnomalyCLIPError` if the files have
        changed since.
    """
    seen = _state(source)

    def compute() -> str:
        _refuse_other(source, seen)
        if known := _remembered(source, seen):
            return known
        lasting = _is_lasting(
            seen
        )  # checked before reading, since reading takes long enough to pass the check
        with read_again():
            weights: Contents = (read or read_weights)(source)
        found = fingerprint(weights.config, weights.state_dict)
        _refuse_other(source, seen)  # changed while it was hashed
        if lasting:
            _remember(source, {"files": seen, "sha256": found})
        return found

    return compute


def _state(source: Path) -> list[Any]:
    """Return a value that changes if any of the files changes, is added or is removed."""
    status = [(file, file.stat()) for file in weight_files(source) if file.is_file()]
    return [[os.path.abspath(file), s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for file, s in status]


def _refuse_other(source: Path, seen: list[Any]) -> None:
    if _state(source) != seen:
        raise AnomalyCLIPError(f"{source}: was changed while it was in use; start again")


def _note(source: Path) -> Path:
    return cache_folder() / "fingerprints" / f"{sha256(os.path.abspath(source).encode()).hexdigest()}.json"


def _remembered(source: Path, seen: list[Any]) -> str | None:
    try:
        note = parse_json(_note(source).read_text())
        known = str(note["sha256"])
        return known if note["files"] == seen and re.fullmatch("[0-9a-f]{64}", known) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_lasting(seen: list[Any]) -> bool:
    """Tell whether files are large enough to cache, and old enough that any change to them would be noticed."""
    newest = max(moment for *_, modified, changed in seen for moment in (modified, changed))
    settled = time.time_ns() - newest > _SETTLED * 1e9
    return bool(settled and sum(size for _, size, *_ in seen) >= REMEMBERED_FROM)


def _remember(source: Path, note: dict[str, Any]) -> None:
    try:
        with replacing(_note(source)) as temporary:
            temporary.write_text(json.dumps(note))
    except OSError:  # a cache that cannot be written only costs time
        return
