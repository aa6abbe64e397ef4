"""Convert texts to token ids, and look up the ids of the few words in prompts."""

import bz2
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalyclip.backbones.table import ASSETS
from anomalyclip.errors import AnomalyCLIPError

if TYPE_CHECKING:
    from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
_PLACEHOLDER = "x"


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


CLIP_VOCABULARY = 49408
"""Tokens of every published CLIP."""


class Tokenizer:
    """A vocabulary file of the ``tokenizers`` library, used as CLIP does.

    Parameters
    ----------
    file : str or Path, optional
        ``tokenizer.json``; it must have the tokens ``<|startoftext|>`` and ``<|endoftext|>``. None: the vocabulary of
        every published CLIP, which is part of the package.
    context_length : int
        Length of every row of token ids.

    Raises
    ------
    AnomalyCLIPError
        If the file is not such a vocabulary.
    """

    def __init__(self, file: str | os.PathLike[str] | None = None, *, context_length: int = 77) -> None:
        self.file = Path("CLIP's vocabulary") if file is None else Path(file)
        self.context_length = context_length
        self._vocabulary = _clip_vocabulary() if file is None else _vocabulary(file)
        self._unknown = getattr(self._vocabulary.model, "unk_token", None) if file is not None else None
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
            If a text has more tokens than fit, or a word that is not in the vocabulary.
        """
        import torch

        ids = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            tokens = [self._start, *self._known(text), self._end]
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
            placeholder=self._word(_PLACEHOLDER),
            damaged=self._word("damaged"),
            object=self._word("object"),
            period=self._word("."),
            end=self._end,
        )

    def digest(self) -> str:
        """Return the SHA-256 of the vocabulary in hex."""
        return _digest(self._vocabulary)

    def words(self) -> list[str]:
        """Return the words of a vocabulary that knows whole words only, in alphabetical order.

        The placeholder of learned vectors is not one of them: it says nothing about an image.
        """
        return sorted(
            word for word in self._vocabulary.get_vocab() if word.isalpha() and word != _PLACEHOLDER
        )

    def _known(self, text: str) -> list[int]:
        """Return the ids of a text all of whose words are known."""
        encoded = self._vocabulary.encode(text, add_special_tokens=False)
        if self._unknown is not None and self._unknown in encoded.tokens:
            start, end = encoded.offsets[encoded.tokens.index(self._unknown)]
            raise AnomalyCLIPError(
                f"{text!r}: the word {text[start:end]!r} is not in the backbone's vocabulary; it knows: "
                f"{', '.join(self.words())}"
            )
        return list(encoded.ids)

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


@lru_cache(maxsize=4)
def _digest(vocabulary: Any) -> str:
    return sha256(vocabulary.to_str().encode()).hexdigest()


def tokenizer_of(source: Path, *, vocabulary: int, context_length: int) -> Tokenizer:
    """Return the tokenizer of a backbone.

    Parameters
    ----------
    source : Path
        File or folder of its weights.
    vocabulary : int
        Its number of tokens; 49,408 is the vocabulary of every published CLIP, another one is read from the
        ``tokenizer.json`` beside the weights.
    context_length : int
        Longest text, in tokens.

    Raises
    ------
    AnomalyCLIPError
        It has another vocabulary and no ``tokenizer.json``.
    """
    if vocabulary == CLIP_VOCABULARY:
        return Tokenizer(context_length=context_length)
    file = (source if source.is_dir() else source.parent) / "tokenizer.json"
    if not file.is_file():
        raise AnomalyCLIPError(
            f"{file}: missing; the backbone has its own vocabulary ({vocabulary} tokens), which words are looked "
            "up in"
        )
    return Tokenizer(file, context_length=context_length)


def _vocabulary(file: str | os.PathLike[str]) -> Any:
    from tokenizers import Tokenizer as Vocabulary

    try:
        return Vocabulary.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise AnomalyCLIPError(f"{file}: not a tokenizer.json of the tokenizers library ({error})") from error


@lru_cache(maxsize=1)
def _clip_vocabulary() -> Any:
    """Return CLIP's byte-pair vocabulary: 256 bytes, the same at the end of a word, the merges, start and end."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    text = bz2.decompress((ASSETS / "words" / "clip_merges.txt.bz2").read_bytes()).decode()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in text.splitlines())]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    # Bytes that cannot be printed are written as the characters from 256 on, in the order of the bytes.
    letters = [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocabulary = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            end_of_word_suffix="</w>",
        )
    )
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    word = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(word, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return vocabulary
