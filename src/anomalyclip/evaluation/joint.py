"""Several methods on the same images: each image is decoded once, and methods with the same backbone share passes."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalyclip.batches import Batches
from anomalyclip.clip.taps import Taps, gflop, passes
from anomalyclip.clip_core import ClipCore
from anomalyclip.decoding import OnError
from anomalyclip.depth import Range, Scale
from anomalyclip.depth.in_scale import Shown, decode_in_scale
from anomalyclip.engines.torch import Compared, Encode, TorchScorer
from anomalyclip.framing import Framing, alike, framing_of
from anomalyclip.prediction import Prediction
from anomalyclip.readers import Source
from anomalyclip.scorer import Scorer

Pixels = Mapping[Framing, NDArray[np.uint8]]
"""By how images become the input: (B, H, W, 3) RGB."""

Scores = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass
class Spent:
    """Seconds that were spent, for all images together.

    Attributes
    ----------
    own : dict of str to float
        By method, after the pass: comparing, enlarging, smoothing.
    shared : dict of str to float
        By method, the pass through the backbone, which it may share with others.
    images : int
        How many images there were.
    """

    own: dict[str, float] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)
    images: int = 0

    def of(self, name: str) -> dict[str, float]:
        """Return what was spent on one method, as `anomalyclip.evaluation.results.ClassResult.seconds` has it."""
        return {
            "pass": self.shared.get(name, 0.0),
            "own": self.own.get(name, 0.0),
            "images": float(self.images),
        }


class JointScorer:
    """Scores a batch by several methods.

    Parameters
    ----------
    scorers : mapping of str to Scorer
        By name. Those of PyTorch whose cores have the same image tower (`shared_backbones`), image size, device and
        precision share a pass, if one pass can serve them (`anomalyclip.clip.taps.Taps.fits`).
    same_maps : mapping of str to str, optional
        By name, the first with the same maps: what such methods have in common is done once. None: no two have.
    """

    def __init__(self, scorers: Mapping[str, Scorer], same_maps: Mapping[str, str] | None = None) -> None:
        self.scorers = dict(scorers)
        self._passes = list(_share(self.scorers, same_maps or {}))

    @property
    def framings(self) -> list[Framing]:
        """The inputs that are needed of an image."""
        return list(dict.fromkeys(framing_of(scorer) for scorer in self.scorers.values()))

    @property
    def shared(self) -> list[tuple[str, ...]]:
        """Which methods share a pass."""
        return [tuple(one.names) for one in self._passes]

    def __call__(self, pixels: Pixels, spent: Spent | None = None) -> dict[str, Scores]:
        """Return scores (B,) and maps (B, H, W) by name; see `anomalyclip.scorer.Scorer`."""
        spent = Spent() if spent is None else spent
        spent.images += len(next(iter(pixels.values())))
        found: dict[str, Scores] = {}
        for one in self._passes:
            found |= one.score(pixels, spent)
        return {name: found[name] for name in self.scorers}

    def gflop(self, names: Iterable[str]) -> float | None:
        """Return the 1e9 operations of the pass that these methods share; None where they are not known."""
        one = next(one for one in self._passes if set(one.names) == set(names))
        scorer = next(iter(one.scorers.values()))
        if one.taps is None:
            return None
        return gflop(_core(scorer).config, one.taps, _core(scorer).patch_grid)


@dataclass(frozen=True)
class _Pass:
    """Methods that share a pass, and what it keeps; None: there is one method, which does it alone."""

    scorers: Mapping[str, Any]
    same_maps: Mapping[str, str] = field(default_factory=dict)
    taps: Taps | None = None
    encode: Encode | None = None

    @property
    def names(self) -> list[str]:
        return list(self.scorers)

    def score(self, pixels: Pixels, spent: Spent) -> dict[str, Scores]:
        first = next(iter(self.scorers.values()))
        images = pixels[framing_of(first)]
        start = time.perf_counter()
        if not isinstance(first, TorchScorer):
            found = {self.names[0]: first(images)}
            self._add(spent, time.perf_counter() - start)
            return found
        features = first.features(images, encode=self.encode)
        _wait_for(first)
        self._add(spent, time.perf_counter() - start)
        found = {}
        compared: dict[str, tuple[Compared, float]] = {}
        for name, scorer in self.scorers.items():
            start = time.perf_counter()
            once = name if scorer.core.rule_in_compare else self.same_maps.get(name, name)
            if once not in compared:
                own = features.of(_core(scorer).taps.path) if self.taps is not None else features
                result = scorer.compared(own)
                _wait_for(scorer)
                compared[once] = result, time.perf_counter() - start
                start = time.perf_counter()
            result, seconds = compared[once]
            found[name] = scorer.finished(result)
            seconds += time.perf_counter() - start
            spent.own[name] = spent.own.get(name, 0.0) + seconds
        return found

    def _add(self, spent: Spent, seconds: float) -> None:
        for name in self.scorers:
            spent.shared[name] = spent.shared.get(name, 0.0) + seconds


def _wait_for(scorer: TorchScorer) -> None:
    """Wait for an accelerator, whose work would otherwise be counted as that of the next step."""
    if scorer.device.type != "cpu":
        torch.accelerator.synchronize(scorer.device)


def _share(scorers: Mapping[str, Scorer], same_maps: Mapping[str, str]) -> Iterator[_Pass]:
    groups: dict[Any, dict[str, TorchScorer]] = {}
    for name, scorer in scorers.items():
        if isinstance(scorer, TorchScorer) and isinstance(core := scorer.core, ClipCore):
            key = (id(core.visual), core.framing, scorer.device, scorer.precision, scorer.compiled)
            groups.setdefault(key, {})[name] = scorer
        else:
            yield _Pass({name: scorer})
    for group in groups.values():
        taps = {name: _core(scorer).taps for name, scorer in group.items()}
        left = dict(group)
        for union in passes(taps.values()):
            served = {name: scorer for name, scorer in left.items() if _serves(union, taps[name])}
            left = {name: scorer for name, scorer in left.items() if name not in served}
            if served:
                yield _Pass(served, same_maps, union, _encoder(served, union))


def _core(scorer: TorchScorer) -> ClipCore:
    assert isinstance(scorer.core, ClipCore)
    return scorer.core


def _serves(union: Taps, one: Taps) -> bool:
    return union.fits(one) and (union | one) == union


def _encoder(scorers: Mapping[str, TorchScorer], union: Taps) -> Encode | None:
    first = next(iter(scorers.values()))
    core = _core(first)
    if core.taps == union:
        return None
    encode = partial(core.encode_for, taps=union)
    return torch.compile(encode) if first.compiled else encode


@dataclass(frozen=True)
class _Prepared:
    """An image at every size that is needed."""

    source: Source
    id: str | None
    size: tuple[int, int]
    value_range: Range | None
    pixels: dict[Framing, NDArray[np.uint8]]


def stream(
    scorer: JointScorer,
    images: Iterable[Source],
    *,
    batch_size: int = 1,
    on_error: OnError | None = None,
    skip: Callable[[str], bool] = lambda id: False,
    spent: Spent | None = None,
    scale: Scale | None = None,
) -> Iterator[dict[str, Prediction]]:
    """Score any number of images in bounded memory, in their order, by all methods.

    Parameters
    ----------
    scorer : JointScorer
    images : iterable of Source
    batch_size, on_error, skip
        As for `anomalyclip.Detector.stream`; an image that one method cannot score is an error for all.
    spent : Spent, optional
        Gets the time that is spent.
    scale : Scale, optional
        Of a run that these images are a part of; see `anomalyclip.Detector.scale`.

    Yields
    ------
    dict of str to Prediction
    """

    def prepare(shown: Shown) -> _Prepared:
        pixels = {framing: framing(shown.image) for framing in scorer.framings}
        return _Prepared(shown.source, shown.id, shown.image.size, shown.value_range, pixels)

    def score(batch: Sequence[_Prepared]) -> list[dict[str, Prediction]]:
        predictions: dict[int, dict[str, Prediction]] = {}
        for group in alike([tuple(one.shape for one in item.pixels.values()) for item in batch]):
            chosen = [batch[index] for index in group]
            predictions |= dict(zip(group, score_alike(chosen), strict=True))
        return [predictions[index] for index in range(len(batch))]

    def score_alike(batch: Sequence[_Prepared]) -> list[dict[str, Prediction]]:
        found = scorer(_stacked([item.pixels for item in batch]), spent)
        return [
            {
                name: Prediction(
                    image_path=item.id,
                    pred_score=float(scores[index]),
                    anomaly_map=maps[index],
                    image_size=item.size,
                    value_range=item.value_range,
                )
                for name, (scores, maps) in found.items()
            }
            for index, item in enumerate(batch)
        ]

    def check() -> None:
        scorer({one: np.full((1, *one.blank, 3), 128, np.uint8) for one in scorer.framings})

    depth = 2 * max(batch_size, 1)
    prepared = decode_in_scale(images, prepare, scale or Scale(), depth=depth, on_error=on_error, skip=skip)
    yield from Batches(score, check, batch_size, on_error).of(prepared)


def _stacked(several: Sequence[dict[Framing, NDArray[np.uint8]]]) -> dict[Framing, NDArray[np.uint8]]:
    return {framing: np.stack([pixels[framing] for pixels in several]) for framing in several[0]}
