"""Words as prompts: phrases for normal and anomalous images, in sentences, with or without a class name.

The words and sentences of the published methods are data (`anomalyclip/assets/words/words.json`, with their sources).
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from anomalyclip.backbones.table import ASSETS
from anomalyclip.clip.tokenizer import Tokenizer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json
from anomalyclip.spec import TEMPLATES, DetectorSpec
from anomalyclip.texts import Phrases

_PLACE = "{}"
_OWN = "words.json"
"""File next to a backbone that has its own vocabulary: the words used with it by default."""


@dataclass(frozen=True)
class Words:
    """The phrases of each side, and the sentences they are put into.

    Parameters
    ----------
    normal, abnormal : tuple of str
        At least one each; ``{}`` stands for the class name.
    templates : tuple of str
        Sentences, in which ``{}`` stands for the phrase; ``("{}",)`` uses the phrase alone.
    each_normalised : bool
        Whether each feature is normalised before a side's features are averaged (CLIP, APRIL-GAN), or not (WinCLIP).

    Examples
    --------
    >>> words = Words(("flawless {}",), ("damaged {}", "scratch"), ("a photo of a {}.",))
    >>> words.phrases("nut")[1]
    ['a photo of a damaged nut.', 'a photo of a scratch.']
    """

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...] = (_PLACE,)
    each_normalised: bool = False

    @property
    def name_class(self) -> bool:
        """Whether the class name is part of any text."""
        return any(_PLACE in text for text in (*self.normal, *self.abnormal))

    def phrases(self, class_name: str | None) -> tuple[list[str], list[str]]:
        """Return the texts of both sides: for each of the words, every sentence.

        Parameters
        ----------
        class_name : str, optional
            Inserted unchanged, including underscores. None: no text contains it.
        """
        if class_name is None:
            assert not self.name_class
            class_name = ""
        named = [[text.replace(_PLACE, class_name) for text in side] for side in (self.normal, self.abnormal)]
        normal, abnormal = (
            [sentence.replace(_PLACE, words) for words in side for sentence in self.templates]
            for side in named
        )
        return normal, abnormal

    def texts(self, tokenizer: Tokenizer, class_name: str | None) -> Phrases:
        """Return the texts of both sides, ready for the text tower.

        Raises
        ------
        AnomalyCLIPError
            A word is not in the vocabulary, or a text is too long.
        """
        normal, abnormal = (tokenizer(side) for side in self.phrases(class_name))
        return Phrases(normal, abnormal, each_normalised=self.each_normalised)

    def digest(self) -> str:
        """Return the SHA-256 of phrases and sentences, in hex; it does not depend on the class."""
        said = [self.normal, self.abnormal, self.templates, self.each_normalised]
        return sha256(json.dumps(said).encode()).hexdigest()


def words_of(
    spec: DetectorSpec, source: Path, *, words: str, templates: str, each_normalised: bool = False
) -> Words:
    """Return the words of a spec: the user's, else the backbone's, else those of a published method.

    Parameters
    ----------
    spec : DetectorSpec
        `normal`, `abnormal` and `templates` of it.
    source : Path
        File or folder of the backbone.
    words, templates : str
        The method's defaults, by name in ``words.json``.
    each_normalised : bool
        As in `Words`.

    Raises
    ------
    AnomalyCLIPError
        The templates are not known, or their file cannot be used.
    """
    own = _beside(source, words)
    sentences: tuple[str, ...] = (_PLACE,)
    if spec.normal is not None and spec.abnormal is not None:
        normal, abnormal = spec.normal, spec.abnormal
    elif own is not None:
        normal, abnormal, sentences = own
    else:
        known = _published()["words"][words]
        normal, abnormal, sentences = (
            tuple(known["normal"]),
            tuple(known["abnormal"]),
            templates_named(templates),
        )
    if spec.templates is not None:
        sentences = templates_named(spec.templates)
    return Words(normal, abnormal, sentences, each_normalised)


@contextmanager
def naming(class_name: str) -> Iterator[None]:
    """Say, if the name of a data set's class cannot be put into sentences, which it is and what to do.

    Examples
    --------
    >>> with naming("gizmo"):
    ...     raise AnomalyCLIPError("'gizmo' is not in the vocabulary")
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: class 'gizmo': 'gizmo' is not in the vocabulary; ...
    """
    try:
        yield
    except AnomalyCLIPError as error:
        raise AnomalyCLIPError(
            f"class {class_name!r}: {error}; --class-name NAME names all classes"
        ) from None


def templates_named(name: str) -> tuple[str, ...]:
    """Return sentences by a name in `anomalyclip.spec.TEMPLATES`, or from a text file with one on each line.

    Raises
    ------
    AnomalyCLIPError
        There is no such name or file, or a line has no ``{}``.

    Examples
    --------
    >>> len(templates_named("winclip")), templates_named("april-gan")[0]
    (21, 'a bad photo of a {}.')
    """
    if name in TEMPLATES:
        return tuple(_published()["templates"][name]["sentences"])
    path = Path(name)
    if os.path.isdir(name) or not os.path.exists(name):
        raise AnomalyCLIPError(
            f"templates {name!r}: neither a known name ({', '.join(TEMPLATES)}) nor a file"
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise AnomalyCLIPError(f"{path}: not a readable text file ({error})") from None
    sentences = tuple(line for line in lines if line)
    if not sentences or (wrong := next((line for line in sentences if _PLACE not in line), None)):
        shown = f"the line {wrong!r} has no {{}}" if sentences else "no line"
        raise AnomalyCLIPError(
            f"{path}: {shown}; expected one sentence on each line, such as: a photo of a {{}}."
        )
    return sentences


def _beside(source: Path, words: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] | None:
    """Return normal and abnormal words and sentences of a backbone that has its own vocabulary, for one method."""
    file = (source if source.is_dir() else source.parent) / _OWN
    if not file.is_file():
        return None
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        content = content.get(words, content)
        normal, abnormal, sentences = (_texts(content[name]) for name in ("normal", "abnormal", "templates"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnomalyCLIPError(
            f"{file}: expected normal, abnormal and templates, lists of texts ({error})"
        ) from None
    return normal, abnormal, sentences


def _texts(value: Sequence[str]) -> tuple[str, ...]:
    if not (
        isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value)
    ):
        raise TypeError(f"{value!r} is not a list of texts")
    return tuple(value)


@lru_cache(maxsize=1)
def _published() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ASSETS / "words" / "words.json").read_text(encoding="utf-8"))
    return content
