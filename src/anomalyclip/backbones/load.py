"""Load any backbone for methods that need no text: the image tower of a CLIP, or a vision-only transformer."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anomalyclip.backbones.config import ViTConfig
from anomalyclip.backbones.rotary import form_of
from anomalyclip.backbones.weights import ViTWeights, read_any
from anomalyclip.clip.config import CLIPConfig
from anomalyclip.clip.fingerprints import of_file
from anomalyclip.clip.model import CLIP, VisionTransformer
from anomalyclip.clip.registry import resolve_backbone


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
    """

    visual: VisionTransformer
    config: CLIPConfig | ViTConfig
    fingerprint: Callable[[], str]


def load_tower(backbone: str | os.PathLike[str]) -> ImageTower:
    """Return the image encoder of a backbone by name, file or folder; see `read_any`.

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
    fingerprint = of_file(
        source, read_any
    )  # taken before reading: if the file changes meanwhile, that is an error
    visual, config = _model(source)
    return ImageTower(visual, config, fingerprint)


def _model(source: Path) -> tuple[VisionTransformer, CLIPConfig | ViTConfig]:
    weights = read_any(source)
    if isinstance(weights, ViTWeights):
        return form_of(weights.config).frozen(weights.config, weights.state_dict), weights.config
    return CLIP.frozen(weights.config, weights.state_dict).visual, weights.config
