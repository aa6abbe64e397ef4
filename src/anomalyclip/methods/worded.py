"""What methods that compare images with words share: from a spec to a scorer, or to one per class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.registry import resolve_backbone
from anomalyclip.clip.tokenizer import Tokenizer, tokenizer_of
from anomalyclip.clip_core import ClipCore
from anomalyclip.engines.torch import TorchScorer, check_runnable
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec
from anomalyclip.texts import Texts
from anomalyclip.words import Words, naming, words_of

TextFeatures = Callable[[], Tensor]


class WordedCore(Protocol):
    """Builds the core of one class from the model, the spec and the source of the (2, E) text features."""

    def __call__(self, clip: CLIP, spec: DetectorSpec, text_features: TextFeatures) -> ClipCore:
        """Return the core."""
        ...


@dataclass(frozen=True)
class Said:
    """What images are compared with, before a class name is inserted.

    Parameters
    ----------
    words : Words
        The words.
    tokenizer : Tokenizer
        The backbone's.
    texts : callable
        Returns the texts of a class; called with None if no text names one.
    digest : str
        SHA-256 of everything that determines them except the class name.
    facts : mapping
        What reports say about them, JSON-ready.
    training : mapping of str to str
        What is known about their training (`Description.training`).
    """

    words: Words
    tokenizer: Tokenizer
    texts: Callable[[str | None], Texts]
    digest: str
    facts: Mapping[str, Any]
    training: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """A backbone and its texts, from which the scorer of any class is built.

    Parameters
    ----------
    spec : DetectorSpec
        All options.
    clip : CLIP
        The model; the text tower is kept for further classes.
    weights_sha256 : callable
        Returns `anomalyclip.clip.weights.fingerprint` of its weights.
    said : Said
        The texts.
    make_core : callable
        See `WordedCore`.
    hashes : mapping of str to str
        Of other trained parts.
    """

    spec: DetectorSpec
    clip: CLIP
    weights_sha256: Callable[[], str]
    said: Said
    make_core: WordedCore
    hashes: Mapping[str, str] = field(default_factory=dict)

    def text_features(self, class_name: str | None) -> Tensor:
        """Return the (2, E) text features of a class."""
        with torch.inference_mode():
            return self.said.texts(class_name).text_features(self.clip)

    def core(self, text_features: TextFeatures) -> ClipCore:
        """Return the core of a class, whose text features are computed after all options have been checked."""
        with torch.inference_mode():
            return self.make_core(self.clip, self.spec, text_features)

    def scorer(self, core: ClipCore, class_name: str | None) -> TorchScorer:
        """Return the scorer of a core."""
        spec = self.spec
        return TorchScorer(
            core,
            identity=lambda: self.identity(core, class_name),
            description=self.describe(class_name),
            device=spec.device,
            precision=spec.precision,
            compiled=spec.compiled,
        )

    def identity(self, core: ClipCore, class_name: str | None) -> dict[str, Any]:
        """Return everything that determines the scores except the precision; without a class, those of all classes."""
        changed = {} if self.spec.activation is None else {"activation": self.spec.activation}
        return {
            "method": self.spec.method,
            **core.settings(),
            **changed,
            "class_name": class_name,
            "weights_sha256": self.weights_sha256(),
            "words_sha256": self.said.digest,
            **self.hashes,
        }

    def describe(self, class_name: str | None) -> Description:
        """Return what reports say about it."""
        title = f"{Path(self.spec.backbone).name}, method {self.spec.method}"
        facts = {"method": self.spec.method, "backbone": self.spec.backbone, **self.said.facts}
        return Description(title, {**facts, "class_name": class_name}, dict(self.said.training))


class ClassScorer:
    """A method that needs the class name, before it is known: makes a scorer for each class, all with one backbone.

    Parameters
    ----------
    parts : Parts
        What the scorers are built from.
    """

    def __init__(self, parts: Parts) -> None:
        nothing = torch.zeros(2, parts.clip.config.embed_dim)
        core = parts.core(lambda: nothing)
        self._parts = parts
        self._encoder = parts.scorer(core, None)
        self._texts: dict[str, Tensor] = {}
        self.image_size = core.image_size

    def of_class(self, name: str) -> TorchScorer:
        """Return the scorer of a class; its text features are computed once.

        Raises
        ------
        AnomalyCLIPError
            The name has a word that is not in the backbone's vocabulary.
        """
        parts = self._parts
        if name not in self._texts:
            with naming(name):
                self._texts[name] = parts.text_features(name)
        core = parts.core(lambda: self._texts[name])
        return self._encoder.with_core(
            core, identity=lambda: parts.identity(core, name), description=parts.describe(name)
        )

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Refuse: there is no class.

        Raises
        ------
        AnomalyCLIPError
            Always.
        """
        raise AnomalyCLIPError(
            f"method {self._parts.spec.method!r} puts the class name into its sentences: give --class-name NAME"
        )

    def identity(self) -> dict[str, Any]:
        """Return what determines the scores of every class; see `anomalyclip.scorer.Scorer`."""
        return self._encoder.identity()

    def describe(self) -> Description:
        """Return what reports say about it."""
        return self._encoder.describe()


def build_worded(
    spec: DetectorSpec,
    make_core: WordedCore,
    *,
    words: str,
    templates: str,
    each_normalised: bool = False,
    class_name: str | None = None,
    parts: Callable[[Parts], Parts] = lambda parts: parts,
) -> TorchScorer | ClassScorer:
    """Return the scorer of a spec whose texts are words.

    Parameters
    ----------
    spec : DetectorSpec
        All options.
    make_core : callable
        See `WordedCore`.
    words, templates : str
        The method's defaults, by name (`anomalyclip.words.words_of`).
    each_normalised : bool
        How features are averaged over a side's texts (`anomalyclip.words.Words`).
    class_name : str, optional
        The class name if the spec has none. None: it must be given.
    parts : callable
        Adds further trained parts of the method.

    Raises
    ------
    AnomalyCLIPError
        Backbone or words cannot be downloaded or read, or an option cannot be used with them.
    """
    made = parts(parts_of(spec, make_core, words=words, templates=templates, each_normalised=each_normalised))
    chosen = spec.class_name or class_name
    names_class = made.said.words.name_class
    if names_class and chosen is None:
        return ClassScorer(made)
    named = chosen if names_class else None
    return made.scorer(made.core(lambda: made.text_features(named)), named)


def parts_of(
    spec: DetectorSpec, make_core: WordedCore, *, words: str, templates: str, each_normalised: bool = False
) -> Parts:
    """Return what the scorers of a spec are made of; see `build_worded`."""
    check_runnable(spec.device, spec.precision)  # before a gigabyte is fetched
    source = resolve_backbone(spec.backbone)
    said = words_of(spec, source, words=words, templates=templates, each_normalised=each_normalised)
    backbone = load_backbone(spec.backbone, activation=spec.activation)
    config = backbone.clip.config
    tokenizer = tokenizer_of(source, vocabulary=config.vocab_size, context_length=config.context_length)
    return Parts(spec, backbone.clip, backbone.fingerprint, _said(said, tokenizer), make_core)


def _said(words: Words, tokenizer: Tokenizer) -> Said:
    digest = sha256(f"{words.digest()} {tokenizer.digest()}".encode()).hexdigest()
    facts = {
        "normal": list(words.normal),
        "abnormal": list(words.abnormal),
        "templates": list(words.templates),
    }
    return Said(words, tokenizer, lambda name: words.texts(tokenizer, name), digest, facts)
