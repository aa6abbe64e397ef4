"""Load a frozen CLIP by name or path, together with the hash that identifies it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

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
    fingerprint = of_file(source)  # taken before reading: if the file changes meanwhile, that is an error
    weights = read_weights(source)
    config = weights.config
    if activation is not None:
        config = replace(config, quick_gelu=activation == "quick-gelu")
    return Backbone(CLIP.frozen(config, weights.state_dict), fingerprint)


def load_clip(backbone: str | os.PathLike[str] = DEFAULT_BACKBONE) -> CLIP:
    """Return only the model of `load_backbone`."""
    return load_backbone(backbone).clip
