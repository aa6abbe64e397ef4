"""Load a frozen CLIP by name or path, together with the hash that identifies it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalyclip.clip.fingerprints import of_file
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.registry import resolve_backbone
from anomalyclip.clip.weights import Weights, read_weights
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
    found = read_once((source, activation), lambda: _read(source, activation))
    return (
        found if isinstance(found, Backbone) else _read(source, activation)
    )  # which says that it has no texts


def _read(source: Path, activation: str | None) -> Backbone:
    fingerprint = of_file(source)  # taken before reading: if the file changes meanwhile, that is an error
    return frozen_backbone(read_weights(source), fingerprint, activation=activation)


def frozen_backbone(
    weights: Weights, fingerprint: Callable[[], str], *, activation: str | None = None
) -> Backbone:
    """Return the model of weights that have been read; see `load_backbone`."""
    config = weights.config
    if activation is not None:
        config = replace(config, quick_gelu=activation == "quick-gelu")
    return Backbone(CLIP.frozen(config, weights.state_dict), fingerprint)


@dataclass(frozen=True)
class _Shared:
    """What is made once in a block of `shared_backbones`."""

    backbones: dict[tuple[Path, str | None], Any] = field(default_factory=dict)
    texts: dict[tuple[int, str], Tensor] = field(default_factory=dict)


_SHARED: ContextVar[_Shared | None] = ContextVar("shared backbones", default=None)


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
    token = _SHARED.set(_Shared())
    try:
        yield
    finally:
        _SHARED.reset(token)


def read_once(key: tuple[Path, str | None], read: Callable[[], Any]) -> Any:
    """Return a backbone; in a block of `shared_backbones` what has the same file and activation is read once.

    Parameters
    ----------
    key : (Path, str or None)
        The file or folder, and the activation as in `load_backbone`.
    read : callable
        Reads it.
    """
    shared = _SHARED.get()
    if shared is None:
        return read()
    if key not in shared.backbones:
        shared.backbones[key] = read()
    return shared.backbones[key]


def texts_once(clip: CLIP, digest: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return the features of texts; in a block of `shared_backbones` the same texts are encoded once.

    Parameters
    ----------
    clip : CLIP
        The model.
    digest : str
        What tells the texts from all others.
    compute : callable
        Encodes them.
    """
    shared = _SHARED.get()
    known = () if shared is None else shared.backbones.values()
    if shared is None or not any(isinstance(one, Backbone) and one.clip is clip for one in known):
        return compute()
    key = id(clip), digest
    if key not in shared.texts:
        shared.texts[key] = compute()
    return shared.texts[key]


def load_clip(backbone: str | os.PathLike[str] = DEFAULT_BACKBONE) -> CLIP:
    """Return only the model of `load_backbone`."""
    return load_backbone(backbone).clip
