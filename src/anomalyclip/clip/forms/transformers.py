"""transformers' `CLIPModel`: its names, and its ``config.json`` (required)."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalyclip.clip.forms.naming import apart, name_in_file, renamed, stack
from anomalyclip.clip.forms.settings import Settings, normalisation_beside
from anomalyclip.clip.tensors import Called, Unusable, read_json


def is_transformers(tensors: Iterable[str]) -> bool:
    """Return whether these are transformers' names."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in tensors)


_NAMES = [
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # spelled like this in transformers
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    (".self_attn.", ".attn."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
]


def called_in(names: Collection[str]) -> Called:
    """Return what gives the names in a file, whose names these are."""
    return lambda name: apart(name, lambda part: name_in_file(part, _NAMES, names), names)


def renamed_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename; stack q, k and v; transpose the two projections, which are linear layers there."""
    found = {renamed(name, _NAMES): tensor for name, tensor in tensors.items()}
    stack(found)
    for name in ("visual.proj", "text_projection"):
        if name in found and found[name].ndim == 2:
            found[name] = found[name].T.contiguous()
    return found


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
