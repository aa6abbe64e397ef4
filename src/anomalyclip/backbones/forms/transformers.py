"""transformers' DINOv2 (with and without registers), DINOv3 and ViT: their names and ``config.json`` (required)."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalyclip.backbones.forms import dinov3
from anomalyclip.backbones.forms.common import (
    HALVES,
    IMAGENET,
    Normalisation,
    Settings,
    normalisation_by_name,
)
from anomalyclip.clip.forms.naming import name_in_file, renamed, stack
from anomalyclip.clip.forms.settings import PREPROCESSING, normalisation_beside
from anomalyclip.clip.tensors import Called, Unusable, read_json

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
    ("embeddings.cls_token", "class_embedding"),
    ("embeddings.position_embeddings", "positional_embedding"),
    ("embeddings.register_tokens", "register_embedding"),
    ("embeddings.patch_embeddings.projection.", "conv1."),
    ("layernorm.", "ln_post."),
    ("encoder.layer.", "transformer.resblocks."),
    ("layers.", "transformer.resblocks."),
    (".norm1.", ".ln_1."),
    (".layernorm_before.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".layernorm_after.", ".ln_2."),
    (".attention.attention.query.", ".attn.q_proj."),
    (".attention.attention.key.", ".attn.k_proj."),
    (".attention.attention.value.", ".attn.v_proj."),
    (".attention.q_proj.", ".attn.q_proj."),
    (".attention.k_proj.", ".attn.k_proj."),
    (".attention.v_proj.", ".attn.v_proj."),
    (".attention.output.dense.", ".attn.out_proj."),
    (".attention.o_proj.", ".attn.out_proj."),
    (".layer_scale1.lambda1", ".ls_1"),
    (".layer_scale2.lambda1", ".ls_2"),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.weights_in.", ".mlp.c_fc."),
    (".intermediate.dense.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".mlp.weights_out.", ".mlp.c_proj."),
    (".output.dense.", ".mlp.c_proj."),
    (".mlp.weights_in.", ".mlp.c_gate."),  # of which a part becomes the gate (`split_gates`)
]


def called_in(names: Collection[str]) -> Called:
    """Return what gives the names in a file, whose names these are."""
    prefix = next((found[0] for name in names if (found := _PREFIX.match(name))), "")
    return lambda name: prefix + name_in_file(name, _NAMES, names)


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
        name = renamed(name, _NAMES)
        if name in ("class_embedding", "positional_embedding", "register_embedding") and tensor.ndim == 3:
            tensor = tensor[0, 0] if name == "class_embedding" else tensor[0]
        found[name] = tensor
    stack(found)
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
