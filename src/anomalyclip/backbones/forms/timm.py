"""timm's vision transformers, and the original files of DINO, DINOv2 and DeiT, which have the same names."""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalyclip.backbones.forms.common import (
    IMAGENET,
    Normalisation,
    Settings,
    names_of,
    normalisation_by_name,
)
from anomalyclip.clip.forms.naming import name_in_file, renamed
from anomalyclip.clip.forms.settings import three
from anomalyclip.clip.tensors import Called, Unusable, read_json

_MARK = "patch_embed.proj.weight"
_TRAINING = "backbone."  # DINO's whole checkpoints, with a head beside the backbone
_VIT = re.compile("vit|deit|eva_|beit|aimv")
# Names of timm's architectures that say the size, and those sizes: width and depth.
_SIZE = re.compile(
    r"(?:vit|deit3?|flexivit|eva)_(tiny|small|base|large|huge)_patch(\d+)(?!_plus|_\d+x\d)(?:_|$)"
)
_SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
_ARGUMENTS = {"embed_dim": "vision_width", "depth": "vision_layers", "patch_size": "patch_size"}
_UNUSED = re.compile(r"(head|head_dist|pre_logits|dino_head|ibot_head)\..*|mask_token")

NAMES = [
    ("cls_token", "class_embedding"),
    ("pos_embed", "positional_embedding"),
    ("reg_token", "register_embedding"),
    ("register_tokens", "register_embedding"),
    ("patch_embed.proj.", "conv1."),
    ("norm.", "ln_post."),
    ("blocks.", "transformer.resblocks."),
    (".norm1.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".attn.qkv.", ".attn.in_proj_"),
    (".attn.proj.", ".attn.out_proj."),
    (".ls1.gamma", ".ls_1"),
    (".ls2.gamma", ".ls_2"),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.w12.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".mlp.w3.", ".mlp.c_proj."),
    (".mlp.w12.", ".mlp.c_gate."),  # of which a part becomes the gate (`split_gates`)
]


def called_in(names: Collection[str]) -> Called:
    """Return what gives the names in a file, whose names these are."""
    prefix = _TRAINING if _TRAINING + _MARK in names else ""
    return lambda name: prefix + name_in_file(name, NAMES, names)


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
        name = renamed(name, NAMES)
        if name in ("class_embedding", "positional_embedding", "register_embedding") and tensor.ndim == 3:
            tensor = tensor[0, 0] if name == "class_embedding" else tensor[0]
        found[name] = tensor
    return found


def settings_beside(file: Path, names: Collection[str]) -> Settings:
    """Return what the form, timm's ``config.json`` if there is one, and else the file's name say."""
    content = config_beside(file)
    if not _has_normalisation(content) and (found := _original(file, names)) is not None:
        return replace(found, stated=stated_by(content))
    unsaid = "blocks.0.ls1.gamma" in names and not _has_normalisation(content)
    heads = _arguments(content).get("num_heads")
    return Settings(
        "bicubic-antialias",
        IMAGENET if unsaid else normalisation_of(file, content),
        heads=heads,
        stated=stated_by(content),
        dinov2="dinov2" in (content.get("architecture") or " ".join(names_of(file.absolute()))).lower(),
    )


def config_beside(file: Path) -> dict[str, Any]:
    """Return timm's configuration in the folder of a file, empty if there is none.

    Raises
    ------
    Unusable
        It is of another kind of model.
    """
    config = file.with_name("config.json")
    content = read_json(config) if config.is_file() else {}
    architecture = str(content.get("architecture") or "vit")
    if not _VIT.search(architecture):
        raise Unusable(
            f"its config.json says architecture {architecture!r}, which is no vision transformer (vit_..., deit_...); "
            "expected the config.json of these weights"
        )
    return content


def stated_by(content: dict[str, Any]) -> dict[str, Any]:
    """Return what timm's configuration says of fields of a `ViTConfig`: in its name, and by itself."""
    found: dict[str, Any] = {}
    if (named := _SIZE.match(str(content.get("architecture")))) is not None:
        width, depth = _SIZES[named[1]]
        found = {"patch_size": int(named[2]), "vision_width": width, "vision_layers": depth}
    arguments = {"embed_dim": content.get("num_features")} | _arguments(content)
    found |= {ours: n for name, ours in _ARGUMENTS.items() if isinstance(n := arguments.get(name), int)}
    side = (_about(content).get("input_size") or [None])[-1]
    return found if side is None else {**found, "image_size": side}


def _arguments(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a model differs in from the architecture of its name."""
    return content["model_args"] if isinstance(content.get("model_args"), dict) else {}


def normalisation_of(file: Path, content: dict[str, Any]) -> Normalisation:
    """Return the normalisation that timm's configuration says, and else the name of the file."""
    about = _about(content)
    if about is content and not _has_normalisation(content):
        return normalisation_by_name(file, "config.json with mean and std")
    if missing := {"mean", "std"} - about.keys():
        raise Unusable(f"its config.json lacks {' and '.join(sorted(missing))}; expected three numbers each")
    return three(about["mean"], "mean"), three(about["std"], "std")


def _about(content: dict[str, Any]) -> dict[str, Any]:
    """Return the part of timm's configuration that says how images are prepared."""
    return content["pretrained_cfg"] if isinstance(content.get("pretrained_cfg"), dict) else content


def _has_normalisation(content: dict[str, Any]) -> bool:
    return "mean" in content or _about(content) is not content


def _original(file: Path, names: Collection[str]) -> Settings | None:
    """Return what the tensors or the name of an original file say; None: it is timm's."""
    if "mask_token" in names or "register_tokens" in names:
        with_registers = "register_tokens" in names
        return Settings("bicubic-antialias" if with_registers else "bicubic-offset", IMAGENET, dinov2=True)
    if _TRAINING + _MARK in names or file.name.startswith("dino_"):
        return Settings("bicubic-offset", IMAGENET)
    return None


def _refuse_parts(names: Collection[str]) -> None:
    if "dist_token" in names:
        raise Unusable(
            "is a distilled DeiT, which has a second class token and is not supported; use the plain one"
        )
    if any(re.match(r"blocks\.\d+\.\d+\.", name) for name in names):
        raise Unusable("has its blocks in chunks; save the state dict of the whole model")
