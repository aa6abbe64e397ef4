"""What was measured once on this machine, remembered in the cache folder. No PyTorch here."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from anomalyclip.clip.download import cache_folder
from anomalyclip.files import parse_json, replacing
from anomalyclip.machine import processor


def this_machine() -> list[Any]:
    """Return what the speed of this machine depends on: its processor, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [processor(), cores]


def recall(kind: str, about: Any) -> dict[str, Any] | None:
    """Return what was remembered; None if there is nothing, or it is damaged.

    Parameters
    ----------
    kind : str
        Name of a folder in the cache folder.
    about : object
        JSON-ready: everything that the measurement depends on.
    """
    try:
        note = parse_json(_note(kind, about).read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def remember(kind: str, about: Any, found: dict[str, Any]) -> None:
    """Remember a measurement; a cache that cannot be written only costs time."""
    try:
        with replacing(_note(kind, about)) as temporary:
            temporary.write_text(json.dumps(found))
    except OSError:
        return


def measured(
    kind: str, about: Any, field: str, of: type[float] | type[bool], measure: Callable[[], dict[str, Any]]
) -> Any:
    """Return one field of what is remembered, of the type `of`; if there is none, measure and remember it.

    Examples
    --------
    >>> import tempfile
    >>> os.environ["ANOMALYCLIP_CACHE"] = tempfile.mkdtemp()
    >>> measured("speed", ["an example"], "ratio", float, lambda: {"ratio": 2.0})
    2.0
    >>> measured("speed", ["an example"], "ratio", float, lambda: {"ratio": 3.0})
    2.0
    """
    known = recall(kind, about)
    if known is None or not isinstance(known.get(field), of):
        known = measure()
        remember(kind, about, known)
    return known[field]


def _note(kind: str, about: Any) -> Path:
    digest = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache_folder() / kind / f"{digest}.json"
