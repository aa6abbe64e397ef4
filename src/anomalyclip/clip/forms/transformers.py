"""transformers' `CLIPModel`: its names, and its ``config.json`` (required)."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalyclip.clip.forms.settings import Settings, normalisation_beside
from anomalyclip.clip.tensors import Unusable, read_json


def is_transformers(tensors: Iterable[str]) -> bool:
    """Return whether these are transformers' names."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in tensors)


_TRANSFORMERS_NAMES = [
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # spelled like this in transformers
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"visual_projection\.weight", "visual.proj"),
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_projection\.weight", "text_projection"),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def renamed_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename; stack q, k and v; transpose the two projections, which are linear layers there."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _TRANSFORMERS_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
        if (
            all(part in renamed and renamed[part].shape == renamed[name].shape for part in parts)
            and renamed[name].ndim
        ):
            stacked = torch.cat([renamed.pop(part) for part in parts])
            renamed[name.replace("q_proj.", "in_proj_")] = stacked
    for name in ("visual.proj", "text_projection"):
        if name in renamed and renamed[name].ndim == 2:
            renamed[name] = renamed[name].T.contiguous()
    return renamed


def settings_beside(file: Path) -> Settings:
    """Return what the configurations in the folder of a file say."""
    config = file.with_name("config.json")
    if not config.is_file():
        raise Unusable(
            "has transformers' names, but no config.json in the same folder; download the whole folder"
        )
    settings = _of_config(read_json(config))
    found = normalisation_beside(file)
    return settings if found is None else replace(settings, mean=found[0], std=found[1])


def _of_config(content: dict[str, Any]) -> Settings:
    # Missing values have transformers' defaults (CLIPVisionConfig, CLIPTextConfig).
    vision, text = content.get("vision_config") or {}, content.get("text_config") or {}
    activations = {tower.get("hidden_act", "quick_gelu") for tower in (vision, text)}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise Unusable(
            f"has the activations {sorted(activations)}; expected quick_gelu or gelu in both towers"
        )
    return Settings(
        vision_heads=vision.get("num_attention_heads", 12),
        text_heads=text.get("num_attention_heads", 8),
        quick_gelu=activations == {"quick_gelu"},
    )
