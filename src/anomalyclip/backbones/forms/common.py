"""What the forms share: the settings that tensors do not show, and the normalisation that a file was trained with."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalyclip.backbones.config import HALF, IMAGENET_MEAN, IMAGENET_STD
from anomalyclip.clip.forms.settings import note

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
HALVES: Normalisation = (HALF, HALF)
SATELLITE: Normalisation = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
"""Of the DINOv3 that was trained on images from satellites (SAT-493M)."""


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
        None: as many as timm's models of this width have.
    stated : dict
        Fields of a configuration, to compare with the tensors.
    rotary : tuple of float
        Periods of rotary positions; empty: there is a table of positions.
    dinov2 : bool
        Whether it is known to be a DINOv2.
    """

    positions: str
    normalisation: Normalisation
    eps: float = 1e-6
    heads: int | None = None
    stated: dict[str, Any] = field(default_factory=dict)
    rotary: tuple[float, ...] = ()
    dinov2: bool = False


def names_of(file: Path) -> tuple[str, ...]:
    """Return the names that say which model a file is: its own, its folder's, in the hub's cache the repository's."""
    return file.parts[:-5:-1]


def normalisation_by_name(file: Path, missing: str = "", usual: Normalisation = IMAGENET) -> Normalisation:
    """Return the normalisation that published files of this name were trained with.

    Parameters
    ----------
    file : Path
        The weights.
    missing : str
        The file that would say it if it were beside it; empty: the form has none.
    usual : tuple
        What it is for another name; a note says so.
    """
    for part in names_of(file):
        if "sat493m" in part.lower():
            return SATELLITE
        if re.search("dino|deit", part.lower()):
            return IMAGENET
        if re.search("augreg|vit-(tiny|small|base|large)-patch", part.lower()):
            return HALVES
    what = (
        "ImageNet's mean and standard deviation" if usual == IMAGENET else "mean and standard deviation 0.5"
    )
    also, advice = (
        (f", and no {missing} is beside it", "put that file beside it") if missing else ("", "rename it")
    )
    note(
        f"{file}: its name is not one of a published model{also}: pixels are normalised with {what}. If it was trained "
        f"with others, {advice}"
    )
    return usual


def split_gates(tensors: dict[str, Tensor]) -> None:
    """Split gated MLPs whose two first layers are stored as one, the gate first, in place (DINOv2 giant)."""
    for name in [name for name in tensors if name.endswith(".mlp.c_fc.weight")]:
        block = name.removesuffix("c_fc.weight")
        last = tensors.get(f"{block}c_proj.weight")
        if last is None or len(tensors[name]) != 2 * last.shape[-1]:
            continue
        for part in ("weight", "bias"):
            if (both := tensors.get(f"{block}c_fc.{part}")) is not None:
                tensors[f"{block}c_gate.{part}"], tensors[f"{block}c_fc.{part}"] = both.tensor_split(2)
