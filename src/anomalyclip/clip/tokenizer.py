"""Convert texts to token ids, and look up the ids of the few words in prompts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anomalyclip.errors import AnomalyCLIPError

if TYPE_CHECKING:
    from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of ``<start> X ... X [damaged] object . <end>``.

    Parameters
    ----------
    start, placeholder, damaged, object, period, end : int
        Ids in the backbone's vocabulary. The text is padded with 0. Its feature is read at the largest id, which is
        `end`.
    """

    start: int
    placeholder: int
    damaged: int
    object: int
    period: int
    end: int


CLIP_TOKENS = PromptTokens(start=49406, placeholder=343, damaged=13568, object=14115, period=269, end=49407)
"""The ids in the vocabulary of every published CLIP, so learned prompts need no vocabulary file."""


class Tokenizer:
    """A vocabulary file of the ``tokenizers`` library, used as CLIP does.

    Parameters
    ----------
    file : str or Path
        ``tokenizer.json``; it must have the tokens ``<|startoftext|>`` and ``<|endoftext|>``.
    context_length : int
        Length of every row of token ids.

    Raises
    ------
    AnomalyCLIPError
        If the file is not such a vocabulary.
    """

    def __init__(self, file: str | os.PathLike[str], *, context_length: int = 77) -> None:
        from tokenizers import Tokenizer as Vocabulary

        self.file = Path(file)
        self.context_length = context_length
        try:
            self._vocabulary = Vocabulary.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise AnomalyCLIPError(
                f"{file}: not a tokenizer.json of the tokenizers library ({error})"
            ) from error
        self._start, self._end = self._id(START), self._id(END)

    def __call__(self, texts: Sequence[str]) -> "Tensor":
        """Return token ids.

        Parameters
        ----------
        texts : sequence of str
            B texts.

        Returns
        -------
        Tensor, int64, shape (B, context_length)
            Start, the text's tokens, end, zeros.

        Raises
        ------
        AnomalyCLIPError
            If a text has too many tokens.
        """
        import torch

        ids = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            tokens = [self._start, *self._encode(text), self._end]
            if len(tokens) > self.context_length:
                raise AnomalyCLIPError(
                    f"the text {text!r} has {len(tokens)} tokens, including start and end; "
                    f"at most {self.context_length} are allowed"
                )
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    def prompt_tokens(self) -> PromptTokens:
        """Look up the words in prompts in this vocabulary.

        Returns
        -------
        PromptTokens
            Their ids.

        Raises
        ------
        AnomalyCLIPError
            If a word is not one token.
        """
        return PromptTokens(
            start=self._start,
            placeholder=self._word("x"),
            damaged=self._word("damaged"),
            object=self._word("object"),
            period=self._word("."),
            end=self._end,
        )

    def _encode(self, text: str) -> list[int]:
        return list(self._vocabulary.encode(text, add_special_tokens=False).ids)

    def _word(self, word: str) -> int:
        ids = self._encode(word)
        if len(ids) != 1:
            raise AnomalyCLIPError(
                f"{self.file}: {word!r} is {len(ids)} tokens; prompts need it to be one token"
            )
        return ids[0]

    def _id(self, token: str) -> int:
        value = self._vocabulary.token_to_id(token)
        if value is None:
            raise AnomalyCLIPError(f"{self.file}: has no token {token}; expected the vocabulary of a CLIP")
        return int(value)
