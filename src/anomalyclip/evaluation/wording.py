"""`study_words`: which of a method's words matter on your own pictures, by leaving out one after the other."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from anomalyclip.addresses import as_address, is_dir
from anomalyclip.clip_core import TextCore
from anomalyclip.data.listing import load_samples
from anomalyclip.data.tree import path_of
from anomalyclip.detector import Detector
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import find_images
from anomalyclip.loading import measured
from anomalyclip.methods import METHODS
from anomalyclip.methods.worded import Parts, parts_of
from anomalyclip.methods.words import OBJECT, WORDED
from anomalyclip.metrics import auroc
from anomalyclip.progress import Track, silent
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec
from anomalyclip.texts import phrase_features
from anomalyclip.words import naming


@dataclass(frozen=True)
class PhraseEffect:
    """What leaving out one of the words does.

    Attributes
    ----------
    side : {"normal", "abnormal"}
        The side that it is on.
    phrase : str
        The words, as they were given.
    score : float
        Mean change of the image scores.
    largest : float
        The largest change of an image score, with its sign.
    map : float
        Mean absolute change of the patches' scores, before the map is enlarged.
    auroc : float or None
        Change of the image AUROC, the mean over classes; None without labels of both kinds.
    """

    side: str
    phrase: str
    score: float
    largest: float
    map: float
    auroc: float | None


@dataclass(frozen=True)
class WordStudy:
    """Which words matter.

    Attributes
    ----------
    effects : tuple of PhraseEffect
        The words that can be left out, those that change the scores most first.
    images : int
        How many images were scored.
    score : float
        Mean image score with all words.
    auroc : float or None
        Image AUROC with all words, the mean over classes.
    kept : tuple of str
        Words that are alone on their side, and cannot be left out.
    failed : dict of str to str
        Images that cannot be used, and why.
    identity : dict
        Of the detector with all words.
    """

    effects: tuple[PhraseEffect, ...]
    images: int
    score: float
    auroc: float | None
    kept: tuple[str, ...]
    failed: dict[str, str]
    identity: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class _Group:
    """Images that are called by one name, with their labels if these are known."""

    class_name: str | None
    paths: list[str]
    labels: list[bool] | None


def study_words(
    spec: DetectorSpec,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    dataset: str | None = None,
    batch_size: int = 1,
    track: Track = silent,
) -> WordStudy:
    """Score images with all words, and with each of them left out; every image is encoded once.

    Parameters
    ----------
    spec : DetectorSpec
        Method ``words``, ``clip`` or ``clip-ac``, and its words; a method that names the class needs a class name,
        unless the data set gives it.
    data : path, or a sequence of these
        The folder of a data set (its test images, with labels), or images, folders and patterns.
    dataset : str, optional
        Key of the data set in the catalogue. None: recognised.
    batch_size : int
        Images per batch.
    track : Track
        Told how far it is.

    Returns
    -------
    WordStudy

    Raises
    ------
    AnomalyCLIPError
        The method has no words, both sides have one alone, or no image can be used.

    Examples
    --------
    >>> from anomalyclip.demo import PICTURES
    >>> spec = DetectorSpec("micro", method="words", normal=["flawless {}"], abnormal=["{} with a crack", "damaged {}"])
    >>> study = study_words(spec, PICTURES)
    >>> sorted(effect.phrase for effect in study.effects), study.kept
    (['damaged {}', '{} with a crack'], ('flawless {}',))
    """
    if spec.method not in WORDED:
        raise AnomalyCLIPError(f"method {spec.method!r}: expected one of {', '.join(WORDED)}")
    if spec.tiling is not None:
        raise AnomalyCLIPError(f"tile {spec.tile}: words are studied on whole images; leave it out")
    spec = measured(spec)
    groups = _groups(data, dataset)
    METHODS[spec.method].check(spec, by_class=all(group.class_name is not None for group in groups))
    parts = parts_of(spec, **WORDED[spec.method])
    named = parts.said.words.name_class
    left_out = _left_out(parts)
    default = spec.class_name or (OBJECT if spec.method == "words" else None)
    total = _Totals(len(left_out))
    with track("Scoring", sum(len(group.paths) for group in groups)) as advance:
        for group in groups:
            name = (default or group.class_name) if named else None
            _score(parts, name, left_out, group, total, batch_size=batch_size, advance=advance)
    if not total.scores:
        why = next(iter(total.failed.values()), "there is none")
        raise AnomalyCLIPError(f"no image can be used: {why}")
    return total.study(parts, left_out)


def _groups(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], dataset: str | None
) -> list[_Group]:
    several = [data] if isinstance(data, str | os.PathLike) else list(data)
    if len(several) == 1 and is_dir(as_address(several[0]) or Path(several[0])):
        try:
            samples = load_samples(several[0], dataset)
        except AnomalyCLIPError:
            if dataset is not None:
                raise
        else:
            names = dict.fromkeys(sample.class_name for sample in samples)
            by_class = {name: [s for s in samples if s.class_name == name] for name in names}
            return [
                _Group(
                    name,
                    [path_of(samples.root, sample.image) for sample in of_class],
                    [sample.anomaly for sample in of_class],
                )
                for name, of_class in by_class.items()
            ]
    if dataset is not None:
        raise AnomalyCLIPError(f"dataset {dataset!r}: give the folder of that data set alone")
    return [_Group(None, [image.path for image in find_images(several)], None)]


def _left_out(parts: Parts) -> list[tuple[int, int]]:
    """Return side and number of all words that are not alone on their side."""
    sides = (parts.said.words.normal, parts.said.words.abnormal)
    found = [
        (side, index) for side, words in enumerate(sides) if len(words) > 1 for index in range(len(words))
    ]
    if not found:
        raise AnomalyCLIPError(
            "each side has one text, so none can be left out: give several --normal or --abnormal"
        )
    return found


def _variants(parts: Parts, class_name: str | None, left_out: Sequence[tuple[int, int]]) -> Tensor:
    """Return text features (1 + V, 2, E): with all words, then without each of them."""
    words, tokenizer, clip = parts.said.words, parts.said.tokenizer, parts.clip
    count = len(words.templates)
    sides = []
    with torch.inference_mode():
        for texts in words.phrases(class_name):
            raw = phrase_features(clip, tokenizer(texts))
            each = F.normalize(raw, dim=-1) if words.each_normalised else raw
            sides.append(torch.stack([part.mean(dim=0) for part in torch.split(each, count)]))  # P E
    rows = [torch.stack([side.mean(dim=0) for side in sides])]
    for side, index in left_out:
        rest = [rows[0][0], rows[0][1]]
        rest[side] = torch.cat([sides[side][:index], sides[side][index + 1 :]]).mean(dim=0)
        rows.append(torch.stack(rest))
    return F.normalize(torch.stack(rows), dim=-1)


class _Variants:
    """A scorer that notes what every variant of the texts gives, and answers with the first."""

    def __init__(self, scorer: TorchScorer, texts: Tensor) -> None:
        assert isinstance(scorer.core, TextCore)
        self.image_size, self._scorer, self._core = scorer.image_size, scorer, scorer.core
        self._texts = texts.to(scorer.device)
        self.scores: list[NDArray[np.float32]] = []
        self.maps: list[NDArray[np.float32]] = []

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        core, scores, grids = self._core, [], []
        with torch.inference_mode():
            found = self._scorer.features(pixels)
            for texts in self._texts:
                core.text_features = texts
                score, grid = core.compare(found)
                score, maps = core.finish(score, grid)
                scores.append(score.cpu().numpy())
                grids.append(grid.cpu().numpy())
        difference = np.abs(np.stack(grids[1:]) - grids[0]).mean(axis=(2, 3))  # V B
        self.scores += list(np.stack(scores).T)  # B of 1+V
        self.maps += list(difference.T)
        return scores[0], maps.cpu().numpy()

    def identity(self) -> dict[str, Any]:
        return self._scorer.identity()

    def describe(self) -> Description:
        return self._scorer.describe()


class _Totals:
    """What all groups of images gave."""

    def __init__(self, variants: int) -> None:
        self.scores: list[NDArray[np.float32]] = []
        self.maps: list[NDArray[np.float32]] = []
        self.aurocs: list[list[float]] = []
        self.failed: dict[str, str] = {}
        self.variants = variants

    def study(self, parts: Parts, left_out: Sequence[tuple[int, int]]) -> WordStudy:
        words, scores, maps = parts.said.words, np.stack(self.scores), np.stack(self.maps)
        sides = (("normal", words.normal), ("abnormal", words.abnormal))
        aurocs = [fmean(column) for column in zip(*self.aurocs, strict=True)] if self.aurocs else None
        effects = []
        for number, (side, index) in enumerate(left_out, start=1):
            change = scores[:, number] - scores[:, 0]
            effects.append(
                PhraseEffect(
                    side=sides[side][0],
                    phrase=sides[side][1][index],
                    score=float(change.mean()),
                    largest=float(change[np.abs(change).argmax()]),
                    map=float(maps[:, number - 1].mean()),
                    auroc=None if aurocs is None else aurocs[number] - aurocs[0],
                )
            )
        nothing = torch.zeros(2, parts.clip.config.embed_dim)
        return WordStudy(
            effects=tuple(sorted(effects, key=lambda effect: -abs(effect.largest))),
            images=len(scores),
            score=float(scores[:, 0].mean()),
            auroc=None if aurocs is None else aurocs[0],
            kept=tuple(words[0] for _, words in sides if len(words) == 1),
            failed=self.failed,
            identity=parts.identity(parts.core(lambda: nothing), parts.spec.class_name),
        )


def _score(
    parts: Parts,
    class_name: str | None,
    left_out: Sequence[tuple[int, int]],
    group: _Group,
    total: _Totals,
    *,
    batch_size: int,
    advance: Callable[[], None],
) -> None:
    with naming(class_name) if class_name and class_name == group.class_name else nullcontext():
        texts = _variants(parts, class_name, left_out)
    scorer = _Variants(parts.scorer(parts.core(lambda: texts[0]), class_name), texts)

    def on_error(image: object, error: InputError) -> None:
        total.failed[str(image)] = str(error)
        advance()

    labels = dict(zip(group.paths, group.labels, strict=True)) if group.labels is not None else {}
    known: list[bool] = []
    detector = Detector(scorer, spec=parts.spec)
    for prediction in _one_each(
        detector.stream(group.paths, batch_size=batch_size, on_error=on_error), advance
    ):
        known += [labels[prediction]] if prediction in labels else []
    total.scores += scorer.scores
    total.maps += scorer.maps
    if len(set(known)) == 2 and len(known) == len(scorer.scores):
        columns = np.stack(scorer.scores).T  # 1+V B
        total.aurocs.append([auroc(known, column) for column in columns])


def _one_each(predictions: Iterable[Any], advance: Callable[[], None]) -> Iterable[str]:
    for prediction in predictions:
        advance()
        yield str(prediction.image_path)
