"""Load any backbone for methods that need no text: the image tower of a CLIP, or a vision-only transformer."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anomalyclip.backbones.config import ViTConfig
from anomalyclip.backbones.rotary import form_of
from anomalyclip.backbones.weights import EXPECTED, ViTWeights, read_any
from anomalyclip.clip.backbone import Backbone, frozen_backbone, read_once
from anomalyclip.clip.config import CLIPConfig
from anomalyclip.clip.fingerprints import of_file
from anomalyclip.clip.model import VisionTransformer
from anomalyclip.clip.registry import resolve_backbone
from anomalyclip.clip.tensors import file_of


@dataclass(frozen=True)
class ImageTower:
    """The frozen image encoder of a backbone.

    Parameters
    ----------
    visual : VisionTransformer
        The encoder.
    config : CLIPConfig or ViTConfig
        Of the model.
    fingerprint : callable
        Returns `anomalyclip.clip.weights.fingerprint` of its weights, without keeping them in memory.
    dinov2 : bool
        Whether it is known to be a DINOv2.
    """

    visual: VisionTransformer
    config: CLIPConfig | ViTConfig
    fingerprint: Callable[[], str]
    dinov2: bool = False


def load_tower(backbone: str | os.PathLike[str]) -> ImageTower:
    """Return the image encoder of a backbone by name, file or folder; see `read_any`.

    In a block of `anomalyclip.clip.backbone.shared_backbones` it is that of methods with texts on the same file.

    Raises
    ------
    AnomalyCLIPError
        The weights cannot be found or read.

    Examples
    --------
    >>> load_tower("micro").config.vision_layers
    6
    """
    source = resolve_backbone(backbone)
    found: Backbone | ImageTower = read_once((source, None), lambda: _read(source))
    if isinstance(found, Backbone):
        return ImageTower(found.clip.visual, found.clip.config, found.fingerprint)
    return found


def _read(source: Path) -> Backbone | ImageTower:
    if source.is_dir():
        file_of(source, EXPECTED)  # a folder without weights is refused
    # taken before reading: if the file changes meanwhile, that is an error
    fingerprint = of_file(source, read_any)
    weights = read_any(source)
    if isinstance(weights, ViTWeights):
        vit = form_of(weights.config).frozen(weights.config, weights.state_dict)
        return ImageTower(vit, weights.config, fingerprint, weights.dinov2)
    return frozen_backbone(weights, fingerprint)
