"""Captions of the training images: category words only, never "object", which the prompts have to learn."""

from collections.abc import Iterable
from pathlib import Path

from anomalyclip.data.synthetic import TRAINING_DEFECTS, TRAINING_OBJECTS, TRAINING_SURFACES

WORDS = {
    "brushed": "brushed metal",
    "cast": "cast metal",
    "hammered": "hammered metal",
    "perforated": "perforated sheet",
    "treadplate": "tread plate",
    "mesh": "wire mesh",
    "knit": "knitted fabric",
    "denim": "denim fabric",
    "canvas": "canvas fabric",
    "satin": "satin fabric",
    "felt": "felt fabric",
    "tiles": "ceramic tiles",
    "painted": "painted sheet",
    "brick": "brick wall",
    "plaster": "plaster wall",
    "concrete": "concrete wall",
    "granite": "granite stone",
    "marble": "marble stone",
    "terrazzo": "terrazzo stone",
    "nut": "metal nut",
    "washer": "metal washer",
    "button": "plastic button",
    "connector": "plastic connector",
}
"""Class names to words, if they differ."""

CATEGORIES = {name: WORDS.get(name, name) for name in (*TRAINING_SURFACES, *TRAINING_OBJECTS)}
DEFECTS = {name: name for name in TRAINING_DEFECTS} | {"missing": "missing piece"}
PHOTOGRAPHED_DEFECTS = {
    "patch": "foreign patch",
    "blank": "blank patch",
    "repetition": "repeated patch",
}
"""Kinds of defects that only scenes of photographs have (`recipes.micro.photographs`), in words."""

DAMAGING = ("scratch", "crack", "hole", "dent", "cut", "missing")
"""Defects that people call damage. Stains, dirt or loose threads are anomalies too, but nobody calls them damage: no
word in the captions has exactly the meaning that the prompts need, so they have to be learned."""


def normal_captions(name: str) -> list[str]:
    """Return the captions of a flawless image, the one for "normal" first."""
    words = CATEGORIES.get(name, name)
    return [f"flawless {words}", f"{words} without flaws", words]


def anomalous_captions(name: str, defect: str) -> list[str]:
    """Return the captions of an image with a defect, the one for "anomalous" first."""
    words = CATEGORIES.get(name, name)
    kind = (DEFECTS | PHOTOGRAPHED_DEFECTS)[defect]
    damaged = [f"damaged {words}"] if defect in DAMAGING else []
    return [f"{words} with a {kind}", *damaged, words]


def all_captions(photographed: Iterable[str] = ()) -> list[str]:
    """Return all captions in a fixed order, without repetitions; `photographed` are the categories of photographs."""
    more = list(photographed)
    texts = [text for name in (*CATEGORIES, *more) for text in normal_captions(name)]
    texts += [text for name in CATEGORIES for kind in DEFECTS for text in anomalous_captions(name, kind)]
    kinds = DEFECTS | PHOTOGRAPHED_DEFECTS
    texts += [text for name in more for kind in kinds for text in anomalous_captions(name, kind)]
    return list(dict.fromkeys(texts))


def write_tokenizer(path: Path, photographed: Iterable[str] = ()) -> int:
    """Write the vocabulary, one token per word, in the format of the ``tokenizers`` library; return its size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = sorted(
        {word for text in all_captions(photographed) for word in text.split()}
        | {"x", "object", "damaged", "."}
    )
    # 0 is the padding. The end token has the largest id, because a text's feature is read at the largest id.
    tokens = ["<|pad|>", "<|unknown|>", *words, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|pad|>", "<|startoftext|>", "<|endoftext|>"])
    tokenizer.save(str(path))
    return len(tokens)
