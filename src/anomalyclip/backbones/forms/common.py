"""What the forms share: the settings that tensors do not show, and the normalisation that a file was trained with."""

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomalyclip.backbones.config import HALF, IMAGENET_MEAN, IMAGENET_STD
from anomalyclip.errors import AnomalyCLIPNote

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class Settings:
    """What a form says besides tensors.

    Attributes
    ----------
    positions : str
        One of `anomalyclip.backbones.config.RESIZING`.
    normalisation : tuple
        Mean and standard deviation.
    eps : float
        Of the norms.
    heads : int, optional
        None: as many as are 64 wide.
    stated : dict
        Fields of a configuration, to compare with the tensors.
    """

    positions: str
    normalisation: Normalisation
    eps: float = 1e-6
    heads: int | None = None
    stated: dict[str, Any] = field(default_factory=dict)


def normalisation_by_name(file: Path) -> Normalisation:
    """Return the normalisation that published files of this name were trained with; a note says if none is known."""
    for part in file.parts[:-5:-1]:  # the file, its folder, and in the hub's cache the repository
        if re.search("augreg|vit-(tiny|small|base|large)-patch", part.lower()):
            return HALF, HALF
        if re.search("dino|deit", part.lower()):
            return IMAGENET
    warnings.warn(
        f"{file}: no configuration beside it, and its name is not one of a published model: taken to be trained with "
        "ImageNet's mean and standard deviation. If it was not, put its config.json beside it",
        AnomalyCLIPNote,
        stacklevel=2,
    )
    return IMAGENET
