"""Read the weights of any backbone: a CLIP, or a vision-only transformer whose architecture the tensors show."""

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from anomalyclip.backbones.config import ViTConfig, tensor_shapes
from anomalyclip.backbones.forms import dinov3, timm, transformers
from anomalyclip.backbones.forms.common import Settings, split_gates
from anomalyclip.clip.forms import strangers
from anomalyclip.clip.forms.naming import apart
from anomalyclip.clip.tensors import Called, Unusable, check_shapes, check_stated, depth_of, opened, shape_of
from anomalyclip.clip.weights import Weights, weights_of

EXPECTED = (
    "expected the weights of DINOv3, DINOv2, DINO or a plain vision transformer (an original file .pth, timm's "
    ".safetensors or .bin, or transformers' folder), or of a CLIP with a vision transformer (OpenAI's archive .pt, a "
    "state dict, open_clip's file, or a folder of transformers or anomalyclip)"
)

_HEAD_WIDTH = 64
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Of the published widths whose heads are not 64 wide (SO400M, huge, giant and gigantic, as in timm)."""
_GATE = ".mlp.c_gate.weight"


@dataclass(frozen=True)
class ViTWeights:
    """Weights of a vision-only transformer.

    Parameters
    ----------
    config : ViTConfig
        The architecture.
    state_dict : dict of str to Tensor
        Under the names of `anomalyclip.backbones.config.tensor_shapes`, in the file's floating-point type.
    source : Path
        The file or folder they were read from.
    dinov2 : bool
        Whether they are known to be DINOv2's: from the form, its configuration or its name.
    """

    config: ViTConfig
    state_dict: dict[str, Tensor]
    source: Path
    dinov2: bool = False


def read_any(path: str | os.PathLike[str]) -> Weights | ViTWeights:
    """Read the weights of a backbone in any published form.

    Code in a file is never run: pickles are read with ``weights_only=True``.

    Parameters
    ----------
    path : str or path
        As for `anomalyclip.clip.weights.read_weights`; or an original file of DINO, DINOv2, DINOv3 or DeiT, a file of
        timm's vision transformers (with its ``config.json``), or the folder of transformers' DINOv2, DINOv3 or ViT.

    Raises
    ------
    AnomalyCLIPError
        It is none of these, incomplete or damaged, or its configuration contradicts its tensors.
    """
    with opened(path, EXPECTED) as (file, tensors, metadata):
        strangers.refuse(tensors.keys())
        if not strangers.is_vision_only(tensors.keys()):
            return weights_of(file, tensors, metadata, source=Path(path))
        try:
            settings, renamed, called = _in_our_names(file, tensors)
            config = _config_of(renamed, settings, called)
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise Unusable(f"its configuration is invalid ({type(error).__name__}: {error})") from error
        check_shapes(renamed, tensor_shapes(config), called)
        return ViTWeights(config, renamed, Path(path), settings.dinov2)


def _in_our_names(file: Path, tensors: dict[str, Tensor]) -> tuple[Settings, dict[str, Tensor], Called]:
    names = tensors.keys()
    if timm.is_timm(names):
        called = timm.called_in(names)
        if dinov3.is_metas(names) or dinov3.is_timms(names):
            called = dinov3.called_in(names, timm.called_in)
            read = dinov3.from_meta if dinov3.is_metas(names) else dinov3.from_timm
            settings, tensors = read(file, tensors)
        else:
            settings = timm.settings_beside(file, names)
        renamed = timm.renamed_tensors(tensors)
    else:
        called = transformers.called_in(names)
        content = transformers.config_beside(file)
        settings = transformers.settings_of(file, content)
        if content["model_type"] == dinov3.KIND:
            called = dinov3.called_in(names, transformers.called_in)
            settings, tensors = dinov3.from_transformers(settings, tensors, content)
        called = partial(apart, called=called, names=names)
        renamed = transformers.renamed_tensors(tensors)
    split_gates(renamed)
    return settings, renamed, called


def _config_of(tensors: dict[str, Tensor], settings: Settings, called: Called = str) -> ViTConfig:
    width, _, patch_size, _ = shape_of(tensors, "conv1.weight", 4, called)
    rows = 0 if settings.rotary else shape_of(tensors, "positional_embedding", 2, called)[0]
    side = math.isqrt(rows)
    if rows - side**2 not in (0, 1) or not (rows or settings.rotary):
        raise Unusable(
            f"{called('positional_embedding')} has {rows} rows; expected a square, or one more for CLS"
        )
    registers = (
        shape_of(tensors, "register_embedding", 2, called)[0] if "register_embedding" in tensors else 0
    )
    heads = _HEADS.get(width, width // _HEAD_WIDTH) if settings.heads is None else settings.heads
    if not isinstance(heads, int) or heads < 1 or width % heads or (settings.heads is None and width % 64):
        raise Unusable(
            f"its width {width} is not divisible into {heads} heads; expected a configuration that says how many"
        )
    periods = settings.rotary
    if periods and (4 * len(periods) * heads != width or not all(0 < one < math.inf for one in periods)):
        raise Unusable(
            f"its rotary positions have {len(periods)} periods; expected {width // heads // 4} positive numbers, a "
            "quarter of a head's width"
        )
    mean, std = settings.normalisation
    if not (all(map(math.isfinite, (*mean, *std))) and min(std) > 0):
        raise Unusable(
            f"its configuration has mean {mean} and std {std}; expected finite numbers, std above 0"
        )
    config = ViTConfig(
        image_size=side * patch_size,
        patch_size=patch_size,
        vision_width=width,
        vision_layers=depth_of(tensors, "transformer"),
        vision_heads=heads,
        registers=registers,
        layer_scale="transformer.resblocks.0.ls_1" in tensors,
        class_position=rows == side**2 + 1,
        positions=settings.positions,
        eps=settings.eps,
        mean=mean,
        std=std,
        gated=next((shape_of(tensors, name, 2, called)[0] for name in tensors if name.endswith(_GATE)), 0),
        rotary=periods,
    )
    check_stated(config, settings.stated)
    return config
