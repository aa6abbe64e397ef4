"""Names and paths to a frozen CLIP and to the prompts that belong to it."""

import os
from dataclasses import replace

from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.clip.registry import DEFAULT_BACKBONE, PROMPTS, resolve_backbone, resolve_prompts
from anomalyclip.clip.weights import read_weights
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prompts import Prompts, load_prompts

# What published prompts were learned on: they mean nothing to a backbone of another shape.
_VIT_L_14_336 = CLIPConfig(768, 336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408)


def load_clip(backbone: str | os.PathLike[str] = DEFAULT_BACKBONE) -> CLIP:
    """Return a frozen CLIP by name (downloaded if it is not cached), file or folder.

    Raises
    ------
    AnomalyCLIPError
        The weights cannot be had or read.
    """
    weights = read_weights(resolve_backbone(backbone))
    return CLIP.frozen(weights.config, weights.state_dict)


def load_prompts_for(
    clip: CLIP, backbone: str | os.PathLike[str], prompts: str | os.PathLike[str] | None = None
) -> Prompts:
    """Return prompts by name or file; None means those that belong to the backbone.

    Published checkpoints say nothing of their making: `Prompts.info` gets their name and what they were trained on.

    Raises
    ------
    AnomalyCLIPError
        No prompts are known for this backbone, or they cannot be had or read.
    """
    if prompts is None:
        beside = resolve_backbone(backbone) / "prompts.safetensors"
        if beside.is_file():
            return load_prompts(beside)
        if clip.config != _VIT_L_14_336:
            raise AnomalyCLIPError(
                f"no prompts are known for the backbone {os.fspath(backbone)!r}: give --prompts FILE, or learn some "
                "with `anomalyclip train`"
            )
        prompts = "mvtec"
    learned, name = load_prompts(resolve_prompts(prompts, backbone=backbone)), os.fspath(prompts)
    if name not in PROMPTS:
        return learned
    known = {"name": name, "trained_on": PROMPTS[name].trained_on}
    return replace(learned, info={key: value for key, value in known.items() if value} | dict(learned.info))
