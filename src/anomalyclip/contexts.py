"""The CoOp-style trained part: context vectors before words that name the class, the same for both sides."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalyclip.clip.model import CLIP
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.trained import check_file, read_trained, save_trained

FORMAT = "anomalyclip-context-1"
"""Name of the safetensors format, stored in the file's header."""

_WHAT = "a CoOp-style context"


@dataclass(frozen=True)
class Context:
    """Learned vectors, and the words that follow them.

    Attributes
    ----------
    vectors : Tensor
        (n, D) float32; they stand between the start token and the words of both sides.
    normal, abnormal : str
        The words of each side; ``{}`` is the class name.
    info : mapping of str to str
        What is known about their training (``trained_on``, ``backbone_fingerprint``, ...).

    References
    ----------
    Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022. With one shared context and image
    cross-entropy it is the nearest to the baseline of AnomalyCLIP's tables, whose code was never published.
    """

    vectors: Tensor
    normal: str
    abnormal: str
    info: Mapping[str, str] = field(default_factory=dict)

    def text_features(self, clip: CLIP, ids: Tensor) -> Tensor:
        """Return (2, E) float32 normalised text features; gradients flow to the vectors.

        Parameters
        ----------
        clip : CLIP
            The frozen model.
        ids : Tensor
            (2, L) int64 token ids of both sides' words for one class, without the context.

        Raises
        ------
        AnomalyCLIPError
            The vectors are for a text transformer of another width, or the texts get too long.
        """
        if self.vectors.shape[1] != clip.config.text_width:
            raise AnomalyCLIPError(
                f"the context was learned for text width {self.vectors.shape[1]}; the backbone's is "
                f"{clip.config.text_width}"
            )
        ids = ids.to(clip.token_embedding.weight.device)
        end = ids.argmax(dim=-1)  # the end token has the largest id
        length = int(end.max()) + 1 + len(self.vectors)
        if length > clip.config.context_length:
            raise AnomalyCLIPError(
                f"texts of {length} tokens, {len(self.vectors)} of them learned; the backbone takes "
                f"{clip.config.context_length}"
            )
        words = clip.token_embedding(ids[:, : int(end.max()) + 1])  # 2 L D
        context = self.vectors.to(words).expand(2, -1, -1)  # 2 n D
        embeddings = torch.cat([words[:, :1], context, words[:, 1:]], dim=1)  # 2 n+L D
        return F.normalize(clip.encode_text(embeddings, end + len(self.vectors)), dim=-1)

    def digest(self) -> str:
        """Return the SHA-256 of vectors and words in hex."""
        digest = hashlib.sha256(f"{self.normal}\n{self.abnormal}\n{tuple(self.vectors.shape)}".encode())
        digest.update(self.vectors.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the context, with the format's name, the words and `info` in the header."""
        info = {**self.info, "normal": self.normal, "abnormal": self.abnormal}
        save_trained(path, {"vectors": self.vectors}, format=FORMAT, info=info)


@dataclass(frozen=True)
class ContextTexts:
    """A context with the words of one class: the texts of a method (`anomalyclip.texts.Texts`).

    Attributes
    ----------
    context : Context
        The learned vectors.
    sides : Tensor
        (2, L) int64 token ids of both sides' words, without the context.
    """

    context: Context
    sides: Tensor

    @property
    def info(self) -> Mapping[str, str]:
        """What is known about their training."""
        return self.context.info

    def text_features(self, clip: CLIP) -> Tensor:
        """Return the (2, E) float32 normalised text features, normal then abnormal."""
        return self.context.text_features(clip, self.sides)

    def digest(self) -> str:
        """Return the SHA-256 of context and ids in hex."""
        return hashlib.sha256(f"{self.context.digest()} {self.sides.tolist()}".encode()).hexdigest()


def load_context(path: str | os.PathLike[str]) -> Context:
    """Read what `Context.save` wrote.

    Raises
    ------
    AnomalyCLIPError
        The file is missing or has no context.
    """
    path = Path(path)
    check_file(path, f"{_WHAT}, from `anomalyclip train --method coop`")
    tensors, info = read_trained(path, format=FORMAT, what=_WHAT)
    vectors, sides = tensors.get("vectors"), [info.pop(name, None) for name in ("normal", "abnormal")]
    if vectors is None or vectors.dim() != 2 or not all(isinstance(side, str) and side for side in sides):
        raise AnomalyCLIPError(f"{path}: an incomplete context: vectors or words missing")
    if not vectors.isfinite().all():
        raise AnomalyCLIPError(f"{path}: the context has values that are NaN or infinite; train again")
    return Context(vectors.float(), str(sides[0]), str(sides[1]), info)
