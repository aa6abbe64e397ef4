"""transformers' DINOv2 (with and without registers), DINOv3 and ViT: their names and ``config.json`` (required)."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalyclip.backbones.forms import dinov3
from anomalyclip.backbones.forms.common import (
    HALVES,
    IMAGENET,
    Normalisation,
    Settings,
    normalisation_by_name,
)
from anomalyclip.clip.forms.settings import PREPROCESSING, normalisation_beside
from anomalyclip.clip.tensors import Unusable, read_json

_MARK = "embeddings.patch_embeddings.projection.weight"
_PREFIX = re.compile(r"^(dinov2_with_registers|dinov2|vit)\.")
_UNUSED = re.compile(r"(pooler|classifier|decoder)\..*|embeddings\.mask_token")

# How each model resizes its table of positions, and the eps of its norms where its config has none.
_MODELS = {
    "dinov2": ("bicubic", 1e-6),
    "dinov2_with_registers": ("bicubic-antialias", 1e-6),
    "vit": ("bicubic", 1e-12),
    dinov3.KIND: ("", 1e-5),
}

_NAMES = [
    (r"^embeddings\.cls_token$", "class_embedding"),
    (r"^embeddings\.position_embeddings$", "positional_embedding"),
    (r"^embeddings\.register_tokens$", "register_embedding"),
    (r"^embeddings\.patch_embeddings\.projection\.", "conv1."),
    (r"^layernorm\.", "ln_post."),
    (r"^(encoder\.layer|layers)\.", "transformer.resblocks."),
    (r"\.(norm1|layernorm_before)\.", ".ln_1."),
    (r"\.(norm2|layernorm_after)\.", ".ln_2."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q_proj."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k_proj."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v_proj."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.out_proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls_\1"),
    (r"\.(mlp\.fc1|mlp\.weights_in|intermediate\.dense)\.", ".mlp.c_fc."),
    (r"\.(mlp\.fc2|mlp\.weights_out|output\.dense)\.", ".mlp.c_proj."),
]


def is_transformers(names: Collection[str]) -> bool:
    """Return whether these are transformers' names."""
    return any(_PREFIX.sub("", name) == _MARK for name in names)


def renamed_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to those of `anomalyclip.backbones.config.tensor_shapes`, without heads; stack q, k and v."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = _PREFIX.sub("", name)
        if _UNUSED.fullmatch(name):
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if name in ("class_embedding", "positional_embedding", "register_embedding") and tensor.ndim == 3:
            tensor = tensor[0, 0] if name == "class_embedding" else tensor[0]
        found[name] = tensor
    for name in [name for name in found if ".attn.q_proj." in name]:
        parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
        if all(part in found and found[part].shape == found[name].shape for part in parts):
            found[name.replace("q_proj.", "in_proj_")] = torch.cat([found.pop(part) for part in parts])
    return found


def config_beside(file: Path) -> dict[str, Any]:
    """Return the configuration in the folder of a file, of a model that is known."""
    config = file.with_name("config.json")
    if not config.is_file():
        raise Unusable(
            "has transformers' names, but no config.json in the same folder; download the whole folder"
        )
    content = read_json(config)
    kind = content.get("model_type")
    if kind not in _MODELS:
        raise Unusable(f"its config.json says model_type {kind!r}; expected one of {', '.join(_MODELS)}")
    return content


def settings_of(file: Path, content: dict[str, Any]) -> Settings:
    """Return what the configurations in the folder of a file say."""
    kind = content["model_type"]
    positions, eps = _MODELS[kind]
    expected = "silu" if content.get("use_gated_mlp") else "gelu"
    if (act := content.get("hidden_act", "gelu")) != expected:
        raise Unusable(f"its config.json says hidden_act {act!r}; expected {expected}")
    return Settings(
        positions,
        _normalisation(file, kind),
        eps=float(content.get("layer_norm_eps", eps)),
        heads=content.get("num_attention_heads", 12),
        stated={ours: content[name] for name, ours in _STATED.items() if isinstance(content.get(name), int)},
        dinov2=kind.startswith("dinov2"),
    )


_STATED = {
    "hidden_size": "vision_width",
    "num_hidden_layers": "vision_layers",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "num_register_tokens": "registers",
}


def _normalisation(file: Path, kind: Any) -> Normalisation:
    if (found := normalisation_beside(file)) is not None:
        return found
    missing = f"{PREPROCESSING} with image_mean and image_std"
    return normalisation_by_name(file, missing, HALVES if kind == "vit" else IMAGENET)
