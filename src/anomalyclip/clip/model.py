"""The frozen CLIP with DPAM's local path: vision transformer, text transformer with deep tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CLIPConfig:
    """Architecture of a CLIP model; every number can be read off its tensors.

    Parameters
    ----------
    embed_dim : int
        Width of the space that images and texts share.
    image_size : int
        Side in pixels of the images that the positional table was made for.
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
