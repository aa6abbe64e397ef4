"""Texts: sources of the two text features, one for normal and one for anomalous images."""

import hashlib
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalyclip.clip.backbone import texts_once
from anomalyclip.clip.model import CLIP


class Texts(Protocol):
    """The texts a method compares images with: learned prompts (`anomalyclip.prompts.Prompts`) or `Phrases`.

    Attributes
    ----------
    info : mapping of str to str
        What is known about their training: ``name``, ``trained_on``, ... (`anomalyclip.scorer.Description.training`).
    """

    @property
    def info(self) -> Mapping[str, str]:
        """What is known about their training."""
        ...

    def text_features(self, clip: CLIP) -> Tensor:
        """Return the (2, E) float32 normalised text features, normal then abnormal."""
        ...

    def digest(self) -> str:
        """Return the SHA-256, in hex, of everything except the model that determines the features."""
        ...


class Phrases:
    """Plain words, nothing learned: one phrase per class, or several whose features are averaged.

    Parameters
    ----------
    normal, abnormal : Tensor
        (T, L) int64 token ids of the phrases of each class: start, words, end, zeros.
    each_normalised : bool
        Whether features are normalised before they are averaged.
    info : mapping of str to str
        What is known about their training.

    References
    ----------
    Averaging features over templates: Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", ICML 2021, section 3.1.4; over the raw features of states and templates: Jeong et al., "WinCLIP",
    CVPR 2023.
    """

    def __init__(
        self,
        normal: Tensor,
        abnormal: Tensor,
        *,
        each_normalised: bool = False,
        info: Mapping[str, str] | None = None,
    ) -> None:
        self.sides = (normal, abnormal)
        self.each_normalised = each_normalised
        self.info: Mapping[str, str] = info or {}

    def text_features(self, clip: CLIP) -> Tensor:
        """Return (2, E) float32: the mean feature of each class, normalised."""
        return texts_once(clip, self.digest(), lambda: self._encoded(clip))

    def _encoded(self, clip: CLIP) -> Tensor:
        means = [self._each(clip, side).mean(dim=0) for side in self.sides]
        return F.normalize(torch.stack(means), dim=-1)

    def _each(self, clip: CLIP, side: Tensor) -> Tensor:
        features = phrase_features(clip, side.to(clip.token_embedding.weight.device))
        return F.normalize(features, dim=-1) if self.each_normalised else features

    def digest(self) -> str:
        """Return the SHA-256 of the token ids in hex."""
        digest = hashlib.sha256(b"each normalised" if self.each_normalised else b"")
        for side in self.sides:
            digest.update(f"{tuple(side.shape)}\n".encode())
            digest.update(side.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


_TOGETHER = 64
"""Batch size of phrases in the text tower."""


def phrase_features(clip: CLIP, ids: Tensor) -> Tensor:
    """Return the features (T, E) of token ids (T, L) before normalisation; texts are cut after the last end token."""
    end = ids.argmax(dim=-1)  # the end token has the largest id
    ids = ids[:, : int(end.max()) + 1]
    starts = range(0, len(ids), _TOGETHER)
    parts = [(ids[start : start + _TOGETHER], end[start : start + _TOGETHER]) for start in starts]
    return torch.cat([clip.encode_text(clip.token_embedding(part), at) for part, at in parts])
