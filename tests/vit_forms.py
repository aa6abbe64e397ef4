"""Small vision-only backbones in each published form; their weights are a formula of their names."""

import json
import re
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
    architecture = f"vit_test_patch14_{form.replace(' ', '_')}"
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "pretrained_cfg": about}))
    return folder


_TO_TRANSFORMERS = {
    r"^cls_token": "embeddings.cls_token",
    r"^pos_embed": "embeddings.position_embeddings",
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"^norm\.": "layernorm.",
    r"^blocks\.": "encoder.layer.",
    r"\.attn\.proj\.": ".attention.output.dense.",
    r"\.ls([12])\.gamma": r".layer_scale\1.lambda1",
}
_TO_VIT = {
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


def transformers_state(kind: str) -> dict[str, Tensor]:
    """Return the state dict of transformers' ViT or DINOv2."""
    state = {}
    for name, tensor in timm_state("dinov2" if kind == "dinov2" else "plain").items():
        for timms, theirs in {**_TO_TRANSFORMERS, **(_TO_VIT if kind == "vit" else {})}.items():
            name = re.sub(timms, theirs, name)
        if ".attn.qkv." in name:
            for part, own in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"attention.attention.{part}")] = own.clone()
        else:
            state[name] = tensor
    return state


def transformers_folder(kind: str, folder: Path) -> Path:
    """Write the folder of transformers' ViT or DINOv2, without preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(transformers_state(kind), folder / "model.safetensors")
    content = {"model_type": kind, "num_attention_heads": 1, "hidden_size": 64, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps({**content, "patch_size": 14, "image_size": 56}))
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


DINOV3 = ["plain", "gated"]
"""MLPs of DINOv3: S, B and L have the plain one, S+ and H+ the gated one."""

DINOV3_SIZES = [(64, 64), (48, 80), (96, 32)]


def dinov3_state(form: str) -> dict[str, Tensor]:
    """Return a state dict as Meta published DINOv3: 2 blocks, 2 heads, 3 registers, patches of 16 pixels."""
    width, periods = 128, 100.0 ** (torch.arange(16) / 16)
    shapes = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, 3, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    hidden = ("w1", "w2") if form == "gated" else ("fc1",)
    for block in range(2):
        rows = {"attn.qkv": 3 * width, "attn.proj": width, **{f"mlp.{name}": 4 * width for name in hidden}}
        for name, count in rows.items():
            shapes[f"blocks.{block}.{name}.weight"] = (count, width)
            shapes[f"blocks.{block}.{name}.bias"] = (count,)
        last = f"blocks.{block}.mlp.{'w3' if form == 'gated' else 'fc2'}"
        shapes |= {f"{last}.weight": (width, 4 * width), f"{last}.bias": (width,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{part}": (width,) for part in ("weight", "bias")}
        shapes |= {f"blocks.{block}.ls{n}.gamma": (width,) for n in (1, 2)}
    # Small enough that rounding is not magnified by attention that is all on one patch.
    state = {name: formula(name, shape) * (0.2 if len(shape) == 2 else 1) for name, shape in shapes.items()}
    mask = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
    masks = {f"blocks.{block}.attn.qkv.bias_mask": mask.clone() for block in range(2)}
    return {**state, **masks, "rope_embed.periods": periods}


def original_dinov3(form: str, folder: Path) -> Path:
    """Write a file as Meta published DINOv3."""
    path = folder / "dinov3_vits16_pretrain_lvd1689m-00000000.pth"
    torch.save(dinov3_state(form), path)
    return path


def timm_dinov3(form: str, folder: Path) -> Path:
    """Write the same weights as timm publishes them, in a folder with its config.json."""
    names = {
        r"storage_tokens": "reg_token",
        r"\.ls([12])\.gamma": r".gamma_\1",
        r"\.mlp\.w1\.": ".mlp.fc1_g.",
        r"\.mlp\.w2\.": ".mlp.fc1_x.",
        r"\.mlp\.w3\.": ".mlp.fc2.",
    }
    state = {}
    for name, tensor in dinov3_state(form).items():
        for theirs, timms in names.items():
            name = re.sub(theirs, timms, name)
        if name.endswith("qkv.bias"):
            state[name.replace("qkv.bias", "q_bias")], _, state[name.replace("qkv.bias", "v_bias")] = (
                part.clone() for part in tensor.chunk(3)
            )
        elif not name.endswith(("bias_mask", "periods", "mask_token")):
            state[name] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    about = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_size": [3, 256, 256]}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "vit_test_patch16_dinov3_qkvb", "pretrained_cfg": about})
    )
    return folder
