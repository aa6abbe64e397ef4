"""The model in the form in which it was published, to be timed against: the same result, computed step by step.

Attention matrices are dense, the last block computes every token, the texts have 77 tokens, and the map is enlarged by
interpolation and smoothed by scipy. Written from the description of the method; see `anomalyclip.clip.model` for ours.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from anomalyclip.clip.config import CLIPConfig
from anomalyclip.prompts import Prompts

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEMPERATURE, SIGMA = 0.07, 4.0

Weights = Mapping[str, Tensor]
"""Under OpenAI's names."""


def scorer(
    weights: Weights, config: CLIPConfig, prompts: Prompts, *, size: int, local_blocks: int
) -> Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return a function from images (B, S, S, 3) uint8 to scores (B,) and maps (B, S, S)."""
    with torch.inference_mode():
        texts = encode_texts(weights, config, prompts)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def score(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
            image, patches = encode_image(weights, config, x, local_blocks)
            scores = _against(image, texts)[:, 1]
            side = size // config.patch_size
            grid = _against(patches[:, 1:], texts).permute(0, 2, 1).unflatten(-1, (side, side))  # B 2 g g
            maps = F.interpolate(grid, size, mode="bilinear", align_corners=False)
            joint = (maps[:, 1] + 1 - maps[:, 0]) / 2
        smooth = np.stack([gaussian_filter(one, sigma=SIGMA) for one in joint.numpy()])
        return scores.numpy(), smooth

    return score


def encode_image(weights: Weights, config: CLIPConfig, x: Tensor, local_blocks: int) -> tuple[Tensor, Tensor]:
    """Return the feature of CLS (B, E) and those of the local path's tokens (B, N, E)."""
    w = _part(weights, "visual.")
    x = F.conv2d(x, w["conv1.weight"], stride=config.patch_size)
    side = x.shape[-1]
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = _norm(x + _positions(w["positional_embedding"], side), w, "ln_pre")
    local = None
    for number in range(config.vision_layers):
        block = _part(w, f"transformer.resblocks.{number}.")
        q, k, v = _projections(_norm(x, block, "ln_1"), block, config.vision_heads)
        if number >= config.vision_layers - local_blocks:
            local = x if local is None else local
            local = local + _merged(_dense_attention(v, v, v), block)
        x = x + _merged(_dense_attention(q, k, v), block)
        x = x + _mlp(_norm(x, block, "ln_2"), block)
    tokens = x if local is None else local
    return x[:, 0] @ w["proj"], _norm(tokens, w, "ln_post") @ w["proj"]


def encode_texts(weights: Weights, config: CLIPConfig, prompts: Prompts) -> Tensor:
    """Return the two normalised text features (2, E), from texts as long as the context."""
    ids = F.pad(prompts.token_ids, (0, config.context_length - prompts.token_ids.shape[1]))
    x = weights["token_embedding.weight"][ids]
    x[:, 1 : 1 + prompts.length] = torch.stack([prompts.normal, prompts.abnormal])
    x = x + weights["positional_embedding"]
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
    for number in range(config.text_layers):
        block = _part(weights, f"transformer.resblocks.{number}.")
        if 1 <= number <= len(prompts.deep_tokens):
            deep = prompts.deep_tokens[number - 1].half().float()
            x = torch.cat([x[:, :1], deep.expand(2, -1, -1), x[:, 1 + len(deep) :]], dim=1)
        q, k, v = _projections(_norm(x, block, "ln_1"), block, config.text_heads)
        x = x + _merged(_dense_attention(q, k, v, mask), block)
        x = x + _mlp(_norm(x, block, "ln_2"), block)
    x = _norm(x, weights, "ln_final")
    found = x[torch.arange(2), ids.argmax(-1)] @ weights["text_projection"]
    return F.normalize(found, dim=-1)


def _part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _positions(table: Tensor, side: int) -> Tensor:
    trained = int((len(table) - 1) ** 0.5)
    if side == trained:
        return table
    square = table[1:].T.reshape(1, -1, trained, trained)
    resized = F.interpolate(square, (side, side), mode="bilinear", align_corners=False)
    return torch.cat([table[:1], resized[0].flatten(1).T])


def _projections(x: Tensor, w: Weights, heads: int) -> Tensor:
    qkv = F.linear(x, w["attn.in_proj_weight"], w["attn.in_proj_bias"])
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # 3 B H N d


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # B H N N
    return (scores if mask is None else scores + mask).softmax(dim=-1) @ v


def _merged(gathered: Tensor, w: Weights) -> Tensor:
    x = gathered.transpose(1, 2).flatten(2)
    return F.linear(x, w["attn.out_proj.weight"], w["attn.out_proj.bias"])


def _mlp(x: Tensor, w: Weights) -> Tensor:
    x = F.linear(x, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"])
    x = x * torch.sigmoid(1.702 * x)
    return F.linear(x, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])


def _against(features: Tensor, texts: Tensor) -> Tensor:
    return (F.normalize(features, dim=-1) @ texts.T / TEMPERATURE).softmax(dim=-1)
