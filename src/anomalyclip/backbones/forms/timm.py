"""timm's vision transformers, and the original files of DINO, DINOv2 and DeiT, which have the same names."""

import re
from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from anomalyclip.backbones.forms.common import IMAGENET, Settings, normalisation_by_name
from anomalyclip.clip.forms.settings import three
from anomalyclip.clip.tensors import Unusable, read_json

_MARK = "patch_embed.proj.weight"
_TRAINING = "backbone."  # DINO's whole checkpoints, with a head beside the backbone
_UNUSED = re.compile(r"(head|head_dist|pre_logits|dino_head|ibot_head)\..*|mask_token")

_NAMES = [
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^(reg_token|register_tokens)$", "register_embedding"),
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^norm\.", "ln_post."),
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.ls([12])\.gamma$", r".ls_\1"),
    (r"\.mlp\.(fc1|w12)\.", ".mlp.c_fc."),
    (r"\.mlp\.(fc2|w3)\.", ".mlp.c_proj."),
]


def is_timm(names: Collection[str]) -> bool:
    """Return whether these are timm's names."""
    return _MARK in names or _TRAINING + _MARK in names


def renamed_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to those of `anomalyclip.backbones.config.tensor_shapes`, without heads.

    Raises
    ------
    Unusable
        The model has parts that are not supported.
    """
    if _TRAINING + _MARK in tensors:
        tensors = {name.removeprefix(_TRAINING): one for name, one in tensors.items() if _TRAINING in name}
    _refuse_parts(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _UNUSED.fullmatch(name):
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if name in ("class_embedding", "positional_embedding", "register_embedding") and tensor.ndim == 3:
            tensor = tensor[0, 0] if name == "class_embedding" else tensor[0]
        found[name] = tensor
    return found


def settings_beside(file: Path, names: Collection[str]) -> Settings:
    """Return what the form, timm's ``config.json`` if there is one, and else the file's name say."""
    config = file.with_name("config.json")
    content = read_json(config) if config.is_file() else {}
    about = content["pretrained_cfg"] if isinstance(content.get("pretrained_cfg"), dict) else content
    if about is not content or "mean" in content:
        if missing := {"mean", "std"} - about.keys():
            raise Unusable(
                f"its config.json lacks {' and '.join(sorted(missing))}; expected three numbers each"
            )
        side = (about.get("input_size") or [None])[-1]
        return Settings(
            "bicubic-antialias",
            (three(about["mean"], "mean"), three(about["std"], "std")),
            stated={} if side is None else {"image_size": side},
        )
    if "mask_token" in names or "register_tokens" in names:  # the original DINOv2
        with_registers = "register_tokens" in names
        return Settings("bicubic-antialias" if with_registers else "bicubic-offset", IMAGENET)
    original = _TRAINING + _MARK in names or file.name.startswith("dino_")
    if original or "blocks.0.ls1.gamma" in names:
        return Settings("bicubic-offset" if original else "bicubic-antialias", IMAGENET)
    return Settings("bicubic-antialias", normalisation_by_name(file))


def _refuse_parts(names: Collection[str]) -> None:
    if "dist_token" in names:
        raise Unusable(
            "is a distilled DeiT, which has a second class token and is not supported; use the plain one"
        )
    if any(re.match(r"blocks\.\d+\.\d+\.", name) for name in names):
        raise Unusable("has its blocks in chunks; save the state dict of the whole model")
