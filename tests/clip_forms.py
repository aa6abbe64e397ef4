"""Writes a tiny CLIP in each form in which CLIPs are published."""

import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anomalyclip.clip.model import CLIPConfig
from anomalyclip.clip.weights import Weights, save_weights, tensor_shapes

CONFIG = CLIPConfig(
    embed_dim=32,
    image_size=28,
    patch_size=14,
    vision_width=128,
    vision_layers=2,
    vision_heads=2,
    text_width=64,
    text_layers=3,
    text_heads=1,
    context_length=16,
    vocab_size=50,
)


def tiny(config: CLIPConfig = CONFIG, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=draw).to(dtype) for name, shape in tensor_shapes(config).items()
    }


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 1)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class Vision(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + (config.image_size // patch) ** 2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.vision_layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Clip(nn.Module):
    """A module with the names that OpenAI's archives have."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.visual = Vision(config)
        self.transformer = Transformer(config.text_width, config.text_layers)
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.text_width))
        self.ln_final = nn.LayerNorm(config.text_width)
        self.text_projection = nn.Parameter(torch.empty(config.text_width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.register_buffer("input_resolution", torch.tensor(config.image_size))
        self.register_buffer("context_length", torch.tensor(config.context_length))
        self.register_buffer("vocab_size", torch.tensor(config.vocab_size))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        x = self.transformer(self.token_embedding(text) + self.positional_embedding)
        return self.visual(image) @ (self.ln_final(x)[:, -1] @ self.text_projection).T * self.logit_scale


def archive(state: dict[str, Tensor], folder: Path) -> Path:
    """As OpenAI made theirs: a traced model in half precision."""
    model = Clip(CONFIG).half().eval()
    model.load_state_dict(state, strict=False)
    side = CONFIG.image_size
    example = (torch.zeros(1, 3, side, side).half(), torch.zeros(1, CONFIG.context_length, dtype=torch.int64))
    with warnings.catch_warnings():  # PyTorch deprecates TorchScript; OpenAI's archives remain
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), folder / "ViT.pt")
    return folder / "ViT.pt"


def state_dict(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "state.pt")
    return folder / "state.pt"


def old_state_dict(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


def training_checkpoint(state: dict[str, Tensor], folder: Path) -> Path:
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def open_clip_file(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def open_clip_folder(state: dict[str, Tensor], folder: Path, *, quick_gelu: bool = True) -> Path:
    save_file(state, folder / "open_clip_model.safetensors")
    vision = {"image_size": 28, "layers": 2, "width": 128, "patch_size": 14}
    text = {"context_length": 16, "vocab_size": 50, "width": 64, "heads": 1, "layers": 3}
    model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    if quick_gelu:
        model["quick_gelu"] = True  # left out otherwise, as in open_clip's own files
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    (folder / "config.json").write_text(json.dumps({"architecture": "timm's own"}))  # the hub has both
    return folder


def in_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of transformers' CLIPModel, written down independently of the reader."""
    renamed = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(16)[None],
    }
    pairs = {
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
    }
    inside = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for theirs, ours, layers in (("vision_model", "visual.transformer", 2), ("text_model", "transformer", 3)):
        for layer in range(layers):
            new, old = f"{theirs}.encoder.layers.{layer}", f"{ours}.resblocks.{layer}"
            pairs |= {f"{new}.{name}": f"{old}.{known}" for name, known in inside.items()}
            for part in ("weight", "bias"):
                for name, value in zip("qkv", state[f"{old}.attn.in_proj_{part}"].chunk(3), strict=True):
                    renamed[f"{new}.self_attn.{name}_proj.{part}"] = value.clone()
    for new, old in pairs.items():
        renamed |= {f"{new}.{part}": state[f"{old}.{part}"] for part in ("weight", "bias")}
    return renamed


def transformers_config(folder: Path, activation: str = "quick_gelu") -> Path:
    content = {
        "model_type": "clip",
        "vision_config": {"hidden_size": 128, "num_attention_heads": 2, "hidden_act": activation},
        "text_config": {"hidden_size": 64, "num_attention_heads": 1, "hidden_act": activation},
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def transformers_folder(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(in_transformers_names(state), folder / "model.safetensors")
    return transformers_config(folder)


def sharded_transformers_folder(state: dict[str, Tensor], folder: Path) -> Path:
    tensors = in_transformers_names(state)
    shards = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return transformers_config(folder)


def transformers_bin_folder(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(in_transformers_names(state), folder / "pytorch_model.bin")
    return transformers_config(folder)


def own_file(state: dict[str, Tensor], folder: Path) -> Path:
    return save_weights(Weights(CONFIG, state, folder), folder / "own.safetensors")


def own_folder(state: dict[str, Tensor], folder: Path) -> Path:
    return save_weights(Weights(CONFIG, state, folder), folder / "own")
