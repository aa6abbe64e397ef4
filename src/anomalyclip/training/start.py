"""The prompts that training starts from: the backbone's token ids, and random vectors drawn from a seed."""

import os
from pathlib import Path

import torch
from torch import Tensor

from anomalyclip.clip.model import CLIP
from anomalyclip.clip.tokenizer import CLIP_TOKENS, CLIP_VOCABULARY, PromptTokens, tokenizer_of
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prompts import Prompts


def prompt_tokens(clip: CLIP, backbone: str | os.PathLike[str]) -> PromptTokens:
    """Return the token ids of the prompts' words in a backbone's vocabulary.

    Parameters
    ----------
    clip : CLIP
        The backbone. If its vocabulary has 49,408 tokens, it is the one of every published CLIP.
    backbone : path-like
        The folder or file it was loaded from; another vocabulary is read from the ``tokenizer.json`` there.

    Raises
    ------
    AnomalyCLIPError
        The backbone has another vocabulary and no ``tokenizer.json``.
    """
    if clip.config.vocab_size == CLIP_VOCABULARY:
        return CLIP_TOKENS
    config = clip.config
    tokenizer = tokenizer_of(
        Path(backbone), vocabulary=config.vocab_size, context_length=config.context_length
    )
    return tokenizer.prompt_tokens()


def prompt_ids(tokens: PromptTokens, *, length: int, context_length: int) -> Tensor:
    """Return token ids of ``X ... X object.`` and ``X ... X damaged object.``, padded.

    Parameters
    ----------
    tokens : PromptTokens
        The words.
    length : int
        Placeholders in each; 0 gives the hand-written pair "object." and "damaged object.".
    context_length : int
        Length of the rows, which are padded with zeros.

    Returns
    -------
    Tensor
        (2, context_length) int64, normal then abnormal.

    Raises
    ------
    AnomalyCLIPError
        The longer text does not fit.

    Examples
    --------
    >>> prompt_ids(CLIP_TOKENS, length=1, context_length=7)
    tensor([[49406,   343, 14115,   269, 49407,     0,     0],
            [49406,   343, 13568, 14115,   269, 49407,     0]])
    """
    words = ([tokens.object, tokens.period], [tokens.damaged, tokens.object, tokens.period])
    room = context_length - 5
    if not 0 <= length <= room:
        raise AnomalyCLIPError(
            f"prompt length {length}: expected 0 to {room}, which is what fits the backbone's texts"
        )
    ids = torch.zeros(2, context_length, dtype=torch.int64)
    for row, text in zip(ids, words, strict=True):
        text = [tokens.start, *[tokens.placeholder] * length, *text, tokens.end]
        row[: len(text)] = torch.tensor(text)
    return ids


def start_prompts(
    clip: CLIP,
    backbone: str | os.PathLike[str],
    *,
    seed: int,
    length: int = 12,
    depth: int | None = None,
    deep_length: int = 4,
) -> Prompts:
    """Return untrained prompts for a backbone, with all values drawn from N(0, 0.02), as published.

    Parameters
    ----------
    clip, backbone
        As for `prompt_tokens`.
    seed : int
        Seed of the random numbers.
    length : int
        Learned vectors in each prompt.
    depth : int, optional
        Number of text blocks that see learned tokens, including the first, which sees the learned vectors: there are
        ``depth - 1`` sets of deep tokens. None: 9, or all blocks if there are fewer.
    deep_length : int
        Tokens in each of these sets.

    Raises
    ------
    AnomalyCLIPError
        The prompts do not fit the backbone, or its vocabulary is unknown.
    """
    config = clip.config
    depth = min(9, config.text_layers) if depth is None else depth
    if not 1 <= depth <= config.text_layers:
        raise AnomalyCLIPError(
            f"prompt depth {depth}: expected 1 to {config.text_layers}, the number of the backbone's text blocks"
        )
    ids = prompt_ids(prompt_tokens(clip, backbone), length=length, context_length=config.context_length)
    shortest = int(ids.argmax(dim=-1).min())
    if not 1 <= deep_length < shortest:
        raise AnomalyCLIPError(
            f"{deep_length} deep tokens: expected 1 to {shortest - 1}; more would overwrite the end of the text"
        )
    generator = torch.Generator().manual_seed(seed)
    return Prompts.initial(
        ids, width=config.text_width, length=length, depth=depth, deep_length=deep_length, generator=generator
    )
