"""Texts become ids the way CLIP does it."""

from pathlib import Path

import pytest
import torch

from anomalyclip.clip.tokenizer import CLIP_TOKENS, PromptTokens, Tokenizer
from anomalyclip.errors import AnomalyCLIPError


def vocabulary(folder: Path, words: list[str]) -> Path:
    from tokenizers import Tokenizer as Vocabulary
    from tokenizers import models, normalizers, pre_tokenizers

    ids = {word: index for index, word in enumerate(["<unk>", *words, "<|startoftext|>", "<|endoftext|>"])}
    built = Vocabulary(models.WordLevel(ids, unk_token="<unk>"))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_tokens_are_start_text_end_and_zeros(tmp_path: Path) -> None:
    tokenizer = Tokenizer(vocabulary(tmp_path, ["x", "damaged", "object", "."]), context_length=8)
    ids = tokenizer(["X X damaged object.", "object"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[5, 1, 1, 2, 3, 4, 6, 0], [5, 3, 6, 0, 0, 0, 0, 0]]
    expected = PromptTokens(start=5, placeholder=1, damaged=2, object=3, period=4, end=6)
    assert tokenizer.prompt_tokens() == expected


def test_a_text_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(vocabulary(tmp_path, ["x"]), context_length=4)
    assert tokenizer(["x x"]).tolist() == [[2, 1, 1, 3]]
    with pytest.raises(AnomalyCLIPError, match=r"'x x x' has 5 tokens, .* at most 4 are allowed"):
        tokenizer(["x x x"])


def test_a_word_of_the_prompts_must_be_one_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Vocabulary
    from tokenizers import models

    letters = {letter: index for index, letter in enumerate("x.damgeobjct")}
    built = Vocabulary(models.BPE({**letters, "<|startoftext|>": 20, "<|endoftext|>": 21}, []))
    built.save(str(tmp_path / "letters.json"))
    with pytest.raises(AnomalyCLIPError, match=r"letters\.json: 'damaged' is 7 tokens"):
        Tokenizer(tmp_path / "letters.json").prompt_tokens()


def test_files_that_are_no_vocabulary_of_a_clip_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(AnomalyCLIPError, match=r"bad\.json: not a tokenizer\.json"):
        Tokenizer(tmp_path / "bad.json")
    file = vocabulary(tmp_path, ["x"])
    file.write_text(file.read_text().replace("<|endoftext|>", "<eos>"))
    with pytest.raises(AnomalyCLIPError, match=r"has no token <\|endoftext\|>"):
        Tokenizer(file)


def test_the_words_of_published_prompts_have_their_published_ids() -> None:
    # the tokenized_prompts of the published checkpoints: the same words in CLIP's own vocabulary
    words = (CLIP_TOKENS.start, CLIP_TOKENS.placeholder, CLIP_TOKENS.damaged, CLIP_TOKENS.object)
    assert words == (49406, 343, 13568, 14115)
    assert (CLIP_TOKENS.period, CLIP_TOKENS.end) == (269, 49407)
