"""Weights that look like a CLIP's and are not used: each is refused by its name, with what to do instead."""

from collections.abc import Collection

from anomalyclip.clip.tensors import Unusable


def is_vision_only(names: Collection[str]) -> bool:
    """Return whether these are the tensors of a vision transformer without texts, in timm's or transformers' names."""
    inside = ("projection.weight", "weight")  # the second is DINOv3's
    marks = ("patch_embed.proj.weight", *(f"embeddings.patch_embeddings.{name}" for name in inside))
    return any(name == mark or name.endswith(f".{mark}") for name in names for mark in marks) and not any(
        name.startswith(("visual.", "text")) for name in names
    )


def refuse(names: Collection[str]) -> None:
    """Refuse other models by the names of their tensors."""
    for marks, said in _STRANGERS:
        if any(name.startswith(marks) for name in names):
            raise Unusable(said)


_STRANGERS = (
    (
        ("logit_bias", "vision_model.head.", "visual.trunk.attn_pool."),
        "is a SigLIP, which is not supported: it has no CLS token and another tokenizer (docs/models.md says why); use "
        "a CLIP, or DINOv2 with --method anomalydino",
    ),
    (
        ("downsample_layers.", "stages.0.downsample_layers.", "stages.0.blocks.0.conv_dw."),
        "is a ConvNeXt, a convolutional network; expected a vision transformer (of DINOv3 a ViT)",
    ),
    (("visual.layer1.",), "is a CLIP with a ResNet image encoder; expected a vision transformer (ViT)"),
    (("visual.trunk.",), "is a CLIP whose image encoder is one of timm's; expected open_clip's own ViT"),
    (("text.", "text_decoder."), "is a model with another text encoder; expected CLIP's own"),
)
