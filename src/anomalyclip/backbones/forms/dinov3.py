"""DINOv3: Meta's file, timm's and transformers', brought to the names that older models have there."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalyclip.backbones.config import periods
from anomalyclip.backbones.forms import timm
from anomalyclip.backbones.forms.common import Normalisation, Settings, normalisation_by_name
from anomalyclip.clip.forms.naming import Pairs, name_in_file, renamed
from anomalyclip.clip.tensors import Called, Unusable

KIND = "dinov3_vit"
"""Its model_type in transformers' configuration."""

_BASE, _EPS, _HEAD_WIDTH = 100.0, 1e-5, 64
_PERIODS = "rope_embed.periods"
_REGISTERS = "embeddings.register_tokens"
_LETTERS = {"q": "query_bias", "k": "key_bias", "v": "value_bias"}

# The norm of small crops is of use in training only.
_UNUSED = re.compile(r"rope_embed\.periods|local_cls_norm\..*|.*\.bias_mask")
_META = [
    ("storage_tokens", "register_tokens"),
    (".mlp.w1.", ".mlp.c_gate."),
    (".mlp.w2.", ".mlp.fc1."),
    (".mlp.w3.", ".mlp.fc2."),
]
_TIMM = [
    (".gamma_1", ".ls1.gamma"),
    (".gamma_2", ".ls2.gamma"),
    (".mlp.fc1_g.", ".mlp.c_gate."),
    (".mlp.fc1_x.", ".mlp.fc1."),
    (".attn.q_bias", ".attn.q_proj.bias"),
    (".attn.v_bias", ".attn.v_proj.bias"),
]
_TRANSFORMERS = [
    ("model.layer.", "layers."),
    ("layer.", "layers."),
    ("norm.", "layernorm."),
    ("embeddings.patch_embeddings.", "embeddings.patch_embeddings.projection."),
    (".mlp.gate_proj.", ".mlp.c_gate."),
    (".mlp.up_proj.", ".mlp.fc1."),
    (".mlp.down_proj.", ".mlp.fc2."),
]


def is_metas(names: Collection[str]) -> bool:
    """Return whether these are the names of Meta's file."""
    return "storage_tokens" in names


def is_timms(names: Collection[str]) -> bool:
    """Return whether these are the names of timm's file."""
    return "blocks.0.gamma_1" in names and "reg_token" in names and "pos_embed" not in names


def called_in(names: Collection[str], older: Callable[[Collection[str]], Called]) -> Called:
    """Return what gives the names in a file, whose names these are.

    Parameters
    ----------
    names : collection of str
    older : callable
        `called_in` of the form of older models, to whose names those of DINOv3 are brought.
    """
    pairs = _META if is_metas(names) else _TIMM if is_timms(names) else _TRANSFORMERS
    outer = older([renamed(name, pairs) for name in names])
    return lambda name: name_in_file(outer(name), pairs, names)


def from_meta(file: Path, tensors: Mapping[str, Tensor]) -> tuple[Settings, dict[str, Tensor]]:
    """Return settings, and tensors in the names of the original DINOv2.

    The periods are those of the file, which are rounded. The bias of the keys is masked, that is 0.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not _UNUSED.fullmatch(name)}
    found = _renamed(kept, _META)
    for name, bias in found.items():
        if name.endswith(".attn.qkv.bias"):
            q, _, v = bias.tensor_split(3)
            found[name] = torch.cat([q, torch.zeros_like(q), v])
    own = tensors[_PERIODS].flatten().tolist() if _PERIODS in tensors else periods(_BASE, _HEAD_WIDTH)
    return _settings(normalisation_by_name(file), tensors["cls_token"].shape[-1], tuple(own)), found


def from_timm(file: Path, tensors: Mapping[str, Tensor]) -> tuple[Settings, dict[str, Tensor]]:
    """Return settings, and tensors in the names of timm's vision transformers; no bias stands for 0.

    Raises
    ------
    Unusable
        No ``config.json`` beside it says that it is a DINOv3.
    """
    content = timm.config_beside(file)
    if "dinov3" not in str(content.get("architecture")):
        raise Unusable(
            "looks like timm's DINOv3; expected a config.json beside it whose architecture says so"
        )
    found = _renamed(tensors, _TIMM)
    for name in [name for name in found if name.endswith(".attn.qkv.weight")]:
        block, width = name.removesuffix("qkv.weight"), found[name].shape[-1]
        q, v = (found.pop(f"{block}{letter}_proj.bias", torch.zeros(width)) for letter in "qv")
        found[f"{block}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    normalisation = timm.normalisation_of(file, content)
    settings = _settings(normalisation, tensors["cls_token"].shape[-1], periods(_BASE, _HEAD_WIDTH))
    return replace(settings, stated=timm.stated_by(content) | {"image_size": 0}), found


def from_transformers(
    usual: Settings, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> tuple[Settings, dict[str, Tensor]]:
    """Return settings, and tensors in the names of transformers' ViT.

    Parameters
    ----------
    usual : Settings
        What the configuration says to older models.
    tensors : mapping of str to Tensor
    content : mapping of str
        The configuration. A bias that it leaves out is 0.
    """
    found = _renamed(tensors, _TRANSFORMERS)
    absent = [letter for letter, name in _LETTERS.items() if not content.get(name, letter != "k")]
    for name in [name for name in found if name.endswith(".attention.o_proj.weight")]:
        for letter in absent:
            bias = torch.zeros(len(found[name]))
            found.setdefault(name.replace("o_proj.weight", f"{letter}_proj.bias"), bias)
    if not found.get(_REGISTERS, torch.ones(1)).numel():  # no registers
        del found[_REGISTERS]
    gated = content["intermediate_size"] if content.get("use_gated_mlp") else 0
    stated = usual.stated | {"gated": gated, "image_size": 0}
    heads = content["num_attention_heads"]
    head = found["embeddings.cls_token"].shape[-1] // heads
    own = periods(float(content.get("rope_theta", _BASE)), head)
    return replace(usual, heads=heads, stated=stated, rotary=own), found


def _settings(normalisation: Normalisation, width: int, own: tuple[float, ...]) -> Settings:
    heads = width // max(4 * len(own), 1)
    return Settings("", normalisation, eps=_EPS, heads=heads, rotary=own)


def _renamed(tensors: Mapping[str, Tensor], names: Pairs) -> dict[str, Tensor]:
    return {renamed(name, names): tensor for name, tensor in tensors.items()}
