"""Small vision-only backbones in each published form; their weights are a formula of their names."""

import json
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZES = [(56, 56), (70, 98), (84, 28)]

_SMALL = {"img_size": 56, "patch_size": 14, "embed_dim": 64, "depth": 2, "num_heads": 1}
TIMM = {
    "plain": _SMALL,
    "dinov2": {**_SMALL, "init_values": 1.0},
    "dinov2 registers": {**_SMALL, "init_values": 1.0, "reg_tokens": 3, "no_embed_class": True},
}
"""Options of timm's VisionTransformer."""

CLIP_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 64, "patch_size": 14},
    "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 1, "layers": 2},
}
"""open_clip's configuration of a small CLIP."""


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return values within [-0.3, 0.3] (norms and scales around 1) that depend on the name alone, on any machine."""
    count = int(torch.Size(shape).numel())
    steps = torch.arange(count, dtype=torch.float64)
    values = torch.sin(steps * (1 + zlib.crc32(name.encode()) % 997 / 331) + len(name)) * 0.3
    around = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "gamma")) else 0.0
    return (values + around).float().reshape(shape)


def formula_pixels(size: tuple[int, int]) -> Tensor:
    """Return normalised pixels (1, 3, H, W)."""
    return 4 * formula(f"pixels {size}", (1, 3, *size))


def timm_shapes(form: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of timm's tensors, written down independently of the reader."""
    options = TIMM[form]
    width, patches = 64, 16
    registers, own_class = options.get("reg_tokens", 0), not options.get("no_embed_class", False)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + own_class, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        shapes["reg_token"] = (1, registers, width)
    for block in range(2):
        inside = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        inside |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, (rows, columns) in inside.items():
            shapes |= {
                f"blocks.{block}.{name}.weight": (rows, columns),
                f"blocks.{block}.{name}.bias": (rows,),
            }
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{part}": (width,) for part in ("weight", "bias")}
        if "init_values" in options:
            shapes |= {f"blocks.{block}.ls{n}.gamma": (width,) for n in (1, 2)}
    return shapes


def timm_state(form: str) -> dict[str, Tensor]:
    return {name: formula(name, shape) for name, shape in timm_shapes(form).items()}


def timm_folder(form: str, folder: Path, *, mean: list[float] | None = None) -> Path:
    """Write timm's file and its config.json, as on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm_state(form), folder / "model.safetensors")
    about = {"mean": mean or [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_size": [3, 56, 56]}
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_test", "pretrained_cfg": about}))
    return folder


def original_dinov2(folder: Path, *, registers: bool = False) -> Path:
    """Write a file as Meta published DINOv2: timm's names, but `register_tokens`, and a row for CLS in every table."""
    state = timm_state("dinov2 registers" if registers else "dinov2")
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = formula("pos_embed", (1, 17, 64))
    state["mask_token"] = torch.zeros(1, 64)
    path = folder / f"dinov2_vits14{'_reg4' * registers}_pretrain.pth"
    torch.save(state, path)
    return path
