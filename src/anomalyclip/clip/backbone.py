"""Load a frozen CLIP by name or path, together with the hash that identifies it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from anomalyclip.clip.fingerprints import of_file
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.registry import resolve_backbone
from anomalyclip.clip.weights import read_weights
from anomalyclip.spec import DEFAULT_BACKBONE


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP from a file.

    Parameters
    ----------
    clip : CLIP
        The model.
    fingerprint : callable
        Returns `anomalyclip.clip.weights.fingerprint` of its weights, without keeping them in memory.
    """

    clip: CLIP
    fingerprint: Callable[[], str]


def load_backbone(
    backbone: str | os.PathLike[str] = DEFAULT_BACKBONE, *, activation: str | None = None
) -> Backbone:
    """Return a frozen CLIP by name (downloaded if it is not cached), file or folder.

    Parameters
    ----------
    backbone : str or path
        The weights.
    activation : {"quick-gelu", "gelu"}, optional
        Of both towers. None: the one that the weights were trained with.

    Raises
    ------
    AnomalyCLIPError
        The weights cannot be downloaded or read.
    """
    source = resolve_backbone(backbone)
    shared = _SHARED.get()
    if shared is None:
        return _read(source, activation)
    if (source, activation) not in shared:
        shared[source, activation] = _read(source, activation)
    return shared[source, activation]


def _read(source: Path, activation: str | None) -> Backbone:
    fingerprint = of_file(source)  # taken before reading: if the file changes meanwhile, that is an error
    weights = read_weights(source)
    config = weights.config
    if activation is not None:
        config = replace(config, quick_gelu=activation == "quick-gelu")
    return Backbone(CLIP.frozen(config, weights.state_dict), fingerprint)


_SHARED: ContextVar[dict[tuple[Path, str | None], Backbone] | None] = ContextVar(
    "shared backbones", default=None
)


@contextmanager
def shared_backbones() -> Iterator[None]:
    """Until the block ends, read each backbone once: what is loaded again is the same model.

    Methods that are built in the block share the weights, and a pass through them (`anomalyclip.clip.taps`).

    Examples
    --------
    >>> with shared_backbones():
    ...     load_backbone("micro").clip is load_backbone("micro").clip
    True
    """
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def load_clip(backbone: str | os.PathLike[str] = DEFAULT_BACKBONE) -> CLIP:
    """Return only the model of `load_backbone`."""
    return load_backbone(backbone).clip
