"""Load a frozen CLIP by name or path, together with the hash that identifies it."""

import os
from collections.abc import Callable
from dataclasses import dataclass

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


def load_backbone(backbone: str | os.PathLike[str] = DEFAULT_BACKBONE) -> Backbone:
    """Return a frozen CLIP by name (downloaded if it is not cached), file or folder.

    Raises
    ------
    AnomalyCLIPError
        The weights cannot be downloaded or read.
    """
    source = resolve_backbone(backbone)
    fingerprint = of_file(source)  # taken before reading: if the file changes meanwhile, that is an error
    weights = read_weights(source)
    return Backbone(CLIP.frozen(weights.config, weights.state_dict), fingerprint)


def load_clip(backbone: str | os.PathLike[str] = DEFAULT_BACKBONE) -> CLIP:
    """Return only the model of `load_backbone`."""
    return load_backbone(backbone).clip
