"""The architecture of a CLIP as a value, and the tensors that it consists of. No PyTorch here."""

from dataclasses import asdict, dataclass
from typing import Any

from anomalyclip.images import OPENAI_MEAN, OPENAI_STD


@dataclass(frozen=True)
class CLIPConfig:
    """Architecture of a CLIP model.

    Parameters
    ----------
    embed_dim : int
        Width of the space that images and texts share.
    image_size : int
        Side in pixels of the images that the positional table is for.
    patch_size : int
        Side of a patch in pixels.
    vision_width, vision_layers, vision_heads : int
        Vision transformer.
    text_width, text_layers, text_heads : int
        Text transformer.
    context_length : int
        Longest text, in tokens.
    vocab_size : int
        Number of tokens.
    quick_gelu : bool
        ``x * sigmoid(1.702 x)`` (OpenAI's models) rather than the exact GELU (most others).
    mean, std : tuple of float
        What pixels within [0, 1] are normalised with, by channel (RGB).
    """

    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int
    vocab_size: int
    quick_gelu: bool = True
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready; the normalisation only if it is not OpenAI's."""
        usual = {"mean": OPENAI_MEAN, "std": OPENAI_STD}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if usual.get(name) != value
        }


def tensor_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of an architecture.

    Parameters
    ----------
    config : CLIPConfig
        The architecture.

    Returns
    -------
    dict of str to tuple of int
        Under OpenAI's names (openai/CLIP, clip/model.py).

    Examples
    --------
    >>> config = CLIPConfig(
    ...     embed_dim=32, image_size=56, patch_size=14, vision_width=64, vision_layers=1, vision_heads=1,
    ...     text_width=64, text_layers=1, text_heads=1, context_length=77, vocab_size=100,
    ... )
    >>> tensor_shapes(config)["visual.positional_embedding"]  # 4 x 4 patches and CLS
    (17, 64)
    """
    vision, text = config.vision_width, config.text_width
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (1 + (config.image_size // config.patch_size) ** 2, vision),
        "visual.conv1.weight": (vision, 3, config.patch_size, config.patch_size),
        "visual.proj": (vision, config.embed_dim),
        "token_embedding.weight": (config.vocab_size, text),
        "positional_embedding": (config.context_length, text),
        "text_projection": (text, config.embed_dim),
        "logit_scale": (),
    }
    for norm, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for tower, width, layers in (
        ("visual.transformer", vision, config.vision_layers),
        ("transformer", text, config.text_layers),
    ):
        for layer in range(layers):
            block = f"{tower}.resblocks.{layer}"
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
            }
            shapes |= {
                f"{block}.{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")
            }
            for linear, rows, columns in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
            ):
                shapes |= {f"{block}.{linear}.weight": (rows, columns), f"{block}.{linear}.bias": (rows,)}
    return shapes
