"""Learned prompts: a frozen value for detection, a module for training, and both checkpoint formats.

A prompt is ``[V_1]..[V_n] object.`` (normal) or ``[W_1]..[W_n] damaged object.`` (abnormal). Learned vectors replace
the placeholder tokens "X" after the start token, and deep tokens overwrite the positions after the start token before
the text blocks 2, 3, ...
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip.clip.checkpoints import load_checkpoint
from anomalyclip.clip.model import CLIP, CLIPConfig
from anomalyclip.clip.registry import PROMPTS, resolve_backbone, resolve_prompts
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import open_output, replacing
from anomalyclip.trained import read_trained, save_trained

FORMAT = "anomalyclip-prompts-1"
"""Name of the safetensors format, stored in the file's header."""

_PROJECTION_ROWS = 896
"""Rows of ``compound_prompt_projections`` in published checkpoints; they are stored but never used."""


@dataclass(frozen=True)
class Prompts:
    """Two object-agnostic prompts, as tensors.

    Attributes
    ----------
    normal, abnormal : Tensor
        (n, D) float32, the learned vectors.
    deep_tokens : tuple of Tensor
        The i-th, (k, D) float32, overwrites the positions 1..k before text block i + 2.
    token_ids : Tensor
        (2, L) int64, normal then abnormal: start, n placeholders, the fixed words, end, zeros.
    info : mapping of str to str
        What is known about their training (``trained_on``, ...).
    """

    normal: Tensor
    abnormal: Tensor
    deep_tokens: tuple[Tensor, ...]
    token_ids: Tensor
    info: Mapping[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of learned vectors in each prompt."""
        return len(self.normal)

    @property
    def width(self) -> int:
        """Width of the text transformer that the prompts are for."""
        return self.normal.shape[-1]

    @classmethod
    def initial(
        cls,
        token_ids: Tensor,
        *,
        width: int,
        length: int = 12,
        depth: int = 9,
        deep_length: int = 4,
        generator: torch.Generator | None = None,
    ) -> "Prompts":
        """Return untrained prompts: all values drawn from N(0, 0.02), as published.

        Parameters
        ----------
        token_ids : Tensor
            (2, L) int64 with `length` placeholders after the start token.
        width : int
            Width of the text transformer.
        length : int
            Learned vectors in each prompt.
        depth : int
            Number of text blocks that see learned tokens: ``depth - 1`` sets of deep tokens.
        deep_length : int
            Tokens in each of these sets.
        generator : torch.Generator, optional
            Source of the random numbers.
        """

        def draw(rows: int) -> Tensor:
            return 0.02 * torch.randn(rows, width, generator=generator)

        deep = tuple(draw(deep_length) for _ in range(depth - 1))
        return cls(draw(length), draw(length), deep, token_ids)

    def text_features(self, clip: CLIP) -> Tensor:
        """Return the (2, E) float32 normalised text features, normal then abnormal.

        The texts are cut after the longer one's end token. Gradients flow to the prompts' tensors.

        Raises
        ------
        AnomalyCLIPError
            The prompts do not fit the text transformer: another width, too few blocks, or too short a context.
        """
        self._check_fits(clip)
        ids = self.token_ids.to(clip.token_embedding.weight.device)
        end = ids.argmax(dim=-1)  # the end token has the largest id
        if int(end.max()) >= clip.config.context_length:
            raise AnomalyCLIPError(
                f"the prompts have {int(end.max()) + 1} tokens; the backbone allows {clip.config.context_length}"
            )
        fixed = clip.token_embedding(ids[:, : int(end.max()) + 1])  # 2 N D
        contexts = torch.stack([self.normal, self.abnormal]).to(fixed)  # 2 n D
        embeddings = torch.cat([fixed[:, :1], contexts, fixed[:, 1 + self.length :]], dim=1)  # 2 N D
        deep = [tokens.to(fixed) for tokens in self.deep_tokens]
        return F.normalize(clip.encode_text(embeddings, end, deep_tokens=deep), dim=-1)

    def _check_fits(self, clip: CLIP) -> None:
        config = clip.config
        needed = f"text width {self.width}, at least {len(self.deep_tokens) + 1} text blocks"
        has = f"text width {config.text_width}, {config.text_layers} text blocks"
        fits = self.width == config.text_width and len(self.deep_tokens) < config.text_layers
        if not fits or int(self.token_ids.max()) >= config.vocab_size:
            raise AnomalyCLIPError(
                f"these prompts were made for another backbone: they need {needed}, a vocabulary of more "
                f"than {int(self.token_ids.max())} tokens; the backbone has {has}, a vocabulary of {config.vocab_size}"
            )

    def digest(self) -> str:
        """Return the SHA-256 of the tensors in hex; it does not depend on the format of the file."""
        digest = hashlib.sha256()
        for tensor in (self.normal, self.abnormal, self.token_ids, *self.deep_tokens):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the safetensors format: the tensors, with the format's name and `info` in the header."""
        tensors = {"normal": self.normal, "abnormal": self.abnormal, "token_ids": self.token_ids}
        tensors |= {f"deep_tokens.{i}": tokens for i, tokens in enumerate(self.deep_tokens)}
        save_trained(path, tensors, format=FORMAT, info=self.info)

    def save_published(self, path: str | os.PathLike[str], clip: CLIP) -> None:
        """Write the published ``.pth`` format, which the published code can load.

        This format also contains the fixed tokens' embeddings (taken from `clip`) and projections that are never used
        (zeros).
        """
        with torch.no_grad():
            fixed = clip.token_embedding(self.token_ids.to(clip.token_embedding.weight.device)).cpu()
        state: dict[str, Tensor] = {}
        for index, (name, context) in enumerate((("pos", self.normal), ("neg", self.abnormal))):
            state[f"ctx_{name}"] = context.detach().cpu()[None, None].clone()
            state[f"token_prefix_{name}"] = fixed[None, None, index, :1].clone()
            state[f"token_suffix_{name}"] = fixed[None, None, index, 1 + self.length :].clone()
            state[f"tokenized_prompts_{name}"] = self.token_ids[None, None, index].int()
        for i, tokens in enumerate(self.deep_tokens):
            state[f"compound_prompts_text.{i}"] = tokens.detach().cpu().clone()
            state[f"compound_prompt_projections.{i}.weight"] = torch.zeros(_PROJECTION_ROWS, self.width)
            state[f"compound_prompt_projections.{i}.bias"] = torch.zeros(_PROJECTION_ROWS)
        # PyTorch writes a file's name into the archive; without a name, equal prompts give equal bytes.
        with replacing(path) as temporary, open_output(temporary) as file:
            torch.save({"prompt_learner": state}, file)


class PromptLearner(nn.Module):
    """The prompts as trainable parameters.

    Parameters
    ----------
    start : Prompts
        The initial values; they are copied.
    """

    def __init__(self, start: Prompts) -> None:
        super().__init__()
        self.normal = nn.Parameter(start.normal.clone())
        self.abnormal = nn.Parameter(start.abnormal.clone())
        self.deep_tokens = nn.ParameterList(nn.Parameter(tokens.clone()) for tokens in start.deep_tokens)
        self.token_ids: Tensor
        self.register_buffer("token_ids", start.token_ids, persistent=False)

    def forward(self, clip: CLIP) -> Tensor:
        """Return the (2, E) normalised text features, with gradients to the parameters."""
        prompts = Prompts(self.normal, self.abnormal, tuple(self.deep_tokens), self.token_ids)
        return prompts.text_features(clip)

    def value(self, info: Mapping[str, str] | None = None) -> Prompts:
        """Return the current values as frozen prompts on the CPU."""
        normal, abnormal, *deep = (p.detach().cpu().clone() for p in self._tensors())
        return Prompts(normal, abnormal, tuple(deep), self.token_ids.cpu(), info or {})

    def _tensors(self) -> Iterable[Tensor]:
        return (self.normal, self.abnormal, *self.deep_tokens)


def load_prompts(path: str | os.PathLike[str]) -> Prompts:
    """Read prompts in either format; length, depth and number of deep tokens are inferred from the tensors.

    Raises
    ------
    AnomalyCLIPError
        The file is missing or is not a prompts checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise AnomalyCLIPError(
            f"{path}: is a folder; give the file in it, such as {path / 'prompts.safetensors'}"
        )
    if not path.is_file():
        raise AnomalyCLIPError(
            f"{path}: no such prompts file; expected prompts.safetensors or a published .pth"
        )
    prompts = _read_published(path) if _is_torch_file(path) else _read_safetensors(path)
    _check_consistent(prompts, path)
    return prompts


def load_prompts_for(
    clip: CLIP, backbone: str | os.PathLike[str], prompts: str | os.PathLike[str] | None = None
) -> Prompts:
    """Return prompts by name or file; None means the backbone's default prompts.

    Published checkpoints do not say how they were made, so their name and training data are added to `Prompts.info`.

    Raises
    ------
    AnomalyCLIPError
        There are no prompts for this backbone, or they cannot be downloaded or read.
    """
    if prompts is None:
        beside = resolve_backbone(backbone) / "prompts.safetensors"
        if beside.is_file():
            return load_prompts(beside)
        if not _is_vit_l_14_336(clip):
            raise AnomalyCLIPError(
                f"there are no prompts for the backbone {os.fspath(backbone)!r}: give --prompts FILE, or learn some "
                "with `anomalyclip train`"
            )
        prompts = "mvtec"
    learned, name = load_prompts(resolve_prompts(prompts, backbone=backbone)), os.fspath(prompts)
    if name not in PROMPTS:
        return learned
    known = {"name": name, "trained_on": PROMPTS[name].trained_on}
    return replace(learned, info={key: value for key, value in known.items() if value} | dict(learned.info))


def _is_vit_l_14_336(clip: CLIP) -> bool:
    """Tell whether the model has the architecture of the published prompts, which work with no other."""
    return clip.config == CLIPConfig(768, 336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408)


def _is_torch_file(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    return start in (b"PK", b"\x80\x02")  # a zip archive, or a pickle (used before torch 1.6)


def _read_safetensors(path: Path) -> Prompts:
    tensors, info = read_trained(path, format=FORMAT, what="prompts", or_else="a published .pth")
    if missing := {"normal", "abnormal", "token_ids"} - tensors.keys():
        raise AnomalyCLIPError(f"{path}: incomplete prompts: {', '.join(sorted(missing))} missing")
    deep = _numbered(tensors, "deep_tokens.", path)
    return _prompts(path, tensors["normal"], tensors["abnormal"], deep, tensors["token_ids"], info)


def _read_published(path: Path) -> Prompts:
    expected = '{"prompt_learner": {"ctx_pos", "ctx_neg", "tokenized_prompts_pos", ...}}'
    try:
        checkpoint = load_checkpoint(path)
    except AnomalyCLIPError:
        raise
    except Exception as error:
        raise AnomalyCLIPError(
            f"{path}: not a readable checkpoint of tensors ({type(error).__name__}); expected {expected}"
        ) from None
    state = checkpoint.get("prompt_learner") if isinstance(checkpoint, dict) else None
    names = ("ctx_pos", "ctx_neg", "tokenized_prompts_pos", "tokenized_prompts_neg")
    if not isinstance(state, dict) or not all(isinstance(state.get(name), Tensor) for name in names):
        raise AnomalyCLIPError(f"{path}: not a prompts checkpoint; expected {expected}")
    if any(state[name].dim() < 2 for name in names[:2]):
        raise AnomalyCLIPError(f"{path}: ctx_pos and ctx_neg are not lists of vectors; expected {expected}")
    normal, abnormal = (state[name].flatten(0, -2) for name in names[:2])
    positive, negative = (state[name].flatten() for name in names[2:])
    if positive.shape != negative.shape or positive.dtype != negative.dtype:
        raise AnomalyCLIPError(
            f"{path}: damaged prompts: {len(positive)} and {len(negative)} token ids; expected as many of both"
        )
    deep = _numbered(state, "compound_prompts_text.", path)
    return _prompts(path, normal, abnormal, deep, torch.stack([positive, negative]), {})


def _numbered(tensors: Mapping[Any, Any], prefix: str, path: Path) -> tuple[Tensor, ...]:
    """Return the tensors of a numbered series; the names and values of a damaged file may be anything."""
    count = sum(isinstance(name, str) and name.startswith(prefix) for name in tensors)
    found = [tensors.get(f"{prefix}{i}") for i in range(count)]
    if missing := [f"{prefix}{i}" for i, tensor in enumerate(found) if not isinstance(tensor, Tensor)]:
        raise AnomalyCLIPError(f"{path}: incomplete prompts: {', '.join(missing)} missing")
    return tuple(found)  # type: ignore[arg-type]


def _prompts(
    path: Path,
    normal: Tensor,
    abnormal: Tensor,
    deep: tuple[Tensor, ...],
    ids: Tensor,
    info: Mapping[str, str],
) -> Prompts:
    """Return prompts with vectors as float32 and token ids as int64, whatever the file has them in."""
    for tensor in (normal, abnormal, *deep):
        if tensor.dtype not in _VECTORS:
            raise AnomalyCLIPError(f"{path}: damaged prompts: vectors of {tensor.dtype}; expected float32")
    if ids.dtype not in _IDS:
        raise AnomalyCLIPError(f"{path}: damaged prompts: token ids of {ids.dtype}; expected int64")
    vectors = [tensor.detach().float() for tensor in (normal, abnormal, *deep)]
    return Prompts(vectors[0], vectors[1], tuple(vectors[2:]), ids.long(), info)


_VECTORS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_IDS = (torch.int64, torch.int32, torch.int16)


def _check_consistent(prompts: Prompts, path: Path) -> None:
    vectors = (prompts.normal, prompts.abnormal, *prompts.deep_tokens)
    shapes = [tuple(tensor.shape) for tensor in vectors]
    ids = prompts.token_ids
    flat = all(len(shape) == 2 and shape[1] == shapes[0][-1] for shape in shapes)
    if (
        not flat
        or shapes[0] != shapes[1]
        or 0 in shapes[0]
        or ids.dim() != 2
        or len(ids) != 2
        or not ids.numel()
    ):
        raise AnomalyCLIPError(
            f"{path}: the prompts' tensors do not match: shapes {shapes}, token ids {tuple(ids.shape)}"
        )
    if int(ids.min()) < 0:
        raise AnomalyCLIPError(f"{path}: damaged prompts: a token id of {int(ids.min())}; expected 0 or more")
    end = int(ids.argmax(dim=-1).min())
    if max(prompts.length, *(len(tokens) for tokens in prompts.deep_tokens), 0) >= end:
        raise AnomalyCLIPError(
            f"{path}: the prompts' tensors do not match: shapes {shapes} in a text whose end token is at {end}"
        )
    if not all(tensor.isfinite().all() for tensor in vectors):
        raise AnomalyCLIPError(
            f"{path}: the prompts contain NaN or infinite values; download or train them again"
        )
