"""`evaluate_shots`: few-shot evaluation with references drawn from each class's normal training images."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyclip.data.meta import SampleList
from anomalyclip.data.tree import path_of
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.drawing import Draw, Pool
from anomalyclip.evaluation.results import METRICS, PAPER, Metrics
from anomalyclip.evaluation.run import Data, evaluate, load_sets, run_folder
from anomalyclip.evaluation.settings import EvaluationSettings, ShotSettings
from anomalyclip.evaluation.summary import Evaluation
from anomalyclip.files import replacing, writing
from anomalyclip.fitting import fit
from anomalyclip.framing import framing_of
from anomalyclip.loading import in_pytorch, needs_references
from anomalyclip.prediction import Threshold
from anomalyclip.progress import Track, silent
from anomalyclip.remembering import TallyByClass, remember
from anomalyclip.runs import RunFolder, begun
from anomalyclip.scorer import Description, Scorer
from anomalyclip.settings import chosen
from anomalyclip.spec import DetectorSpec

ZERO = 0
"""Shots of a run without references, which stands first in the table."""


@dataclass(frozen=True)
class ShotRun:
    """One evaluation with one draw of references.

    Attributes
    ----------
    shots, seed : int
        How many references there are for each class, and which draw it is.
    references : mapping of str to list of str
        Data set and class (``mvtec/bottle``) to the paths of its references, relative to the data set's folder.
    evaluation : Evaluation
        Its results.
    """

    shots: int
    seed: int
    references: Mapping[str, Sequence[str]]
    evaluation: Evaluation


@dataclass(frozen=True)
class ShotEvaluation:
    """All runs, the one without references first.

    Attributes
    ----------
    runs : sequence of ShotRun
    """

    runs: Sequence[ShotRun]

    @property
    def shots(self) -> list[int]:
        """The numbers of references, in rising order; 0 is the run without any."""
        return sorted({run.shots for run in self.runs})

    def mean(self, shots: int) -> Metrics:
        """Return the mean of each metric over the draws."""
        return {name: None if not (v := self._values(name, shots)) else fmean(v) for name in METRICS}

    def spread(self, shots: int) -> Metrics:
        """Return the sample standard deviation of each metric over the draws; None for fewer than two."""
        values = {name: self._values(name, shots) for name in METRICS}
        return {name: stdev(found) if len(found) > 1 else None for name, found in values.items()}

    def _values(self, metric: str, shots: int) -> list[float]:
        means = (run.evaluation.mean[metric] for run in self.runs if run.shots == shots)
        return [value for value in means if value is not None]

    def rows(self, metrics: Sequence[str] = PAPER) -> list[list[str]]:
        """Return the table in percent: shots, then each metric as mean +- spread."""
        found = []
        for shots in self.shots:
            mean, spread = self.mean(shots), self.spread(shots)
            found.append([str(shots), *(_cell(mean[name], spread[name]) for name in metrics)])
        return found

    def to_markdown(self, metrics: Sequence[str] = PAPER) -> str:
        """Return the table as Markdown."""
        heads = ["references", *(" ".join(METRICS[name]) for name in metrics)]
        lines = [heads, ["---"] * len(heads), *self.rows(metrics)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_json(self) -> dict[str, Any]:
        """Return what shots.json contains: every draw with its references and figures, and the table."""
        return {
            "runs": [
                {
                    "shots": run.shots,
                    "seed": run.seed,
                    "references": {name: list(paths) for name, paths in run.references.items()},
                    "mean": run.evaluation.mean,
                }
                for run in self.runs
            ],
            "table": {
                str(shots): {"mean": self.mean(shots), "spread": self.spread(shots)} for shots in self.shots
            },
        }


def _cell(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def evaluate_shots(
    detector: Detector | DetectorSpec,
    data: Data | Sequence[Data],
    shots: ShotSettings | Sequence[int],
    settings: EvaluationSettings | None = None,
    *,
    output: str | os.PathLike[str] | RunFolder | None = None,
    resume: bool = False,
    threshold: float | Threshold | str | os.PathLike[str] | None = None,
    track: Track = silent,
    **choices: Any,
) -> ShotEvaluation:
    """Evaluate a detector without references, and with references drawn from each class's normal training images.

    Parameters
    ----------
    detector : Detector or DetectorSpec
        In PyTorch, without references.
    data : path, SampleList, or a sequence of these
        Data sets with normal training images.
    shots : ShotSettings or sequence of int
        How many references, and how often they are drawn (3 times for plain numbers).
    settings : EvaluationSettings, optional
        All other options; each of them may also be given as a keyword.
    output : path or RunFolder, optional
        Folder for the results: a subfolder for each run (``shots-4-seed-0``), and ``shots.json`` and ``shots.md`` with
        the table and the references. None: nothing is kept.
    threshold : float, Threshold or path, optional
        As for `evaluate`.
    resume : bool
        Continue a stopped evaluation in `output`.
    track : Track
        Receives the progress.

    Returns
    -------
    ShotEvaluation

    Raises
    ------
    AnomalyCLIPError
        A class has fewer normal training images that can be read than references are wanted, or as `evaluate`.
    """
    settings = chosen(EvaluationSettings, settings, choices)
    if not isinstance(shots, ShotSettings):
        shots = ShotSettings(shots=tuple(shots))
    if settings.maps is not None:
        raise AnomalyCLIPError("--shots cannot be combined with --from-maps: the maps already exist")
    sets = load_sets(data, settings.dataset, allow_outside=settings.allow_outside)
    pool = Pool(sets, max(shots.shots, default=0), allow_outside=settings.allow_outside)
    if isinstance(detector, DetectorSpec) and detector.references is not None:
        raise AnomalyCLIPError("--shots draws references: leave out --references")
    detector = in_pytorch(detector, by_class=True)
    folder = output if output is None or isinstance(output, RunFolder) else run_folder(output, resume=resume)
    kinds = [(count, seed) for count in sorted(set(shots.shots)) for seed in range(shots.seeds)]
    draws = [(count, seed, pool.draw(count, seed)) for count, seed in kinds]  # before anything is scored
    with begun(folder, lambda: {"shots": list(shots.shots), "seeds": shots.seeds}, about=dict) as place:
        resumed = folder is not None and folder.resume
        work = _Work(detector, sets, replace(settings, dataset=None), threshold, place, resumed, track)
        alone = [] if needs_references(detector) else [work.run(ZERO, 0, {})]
        result = ShotEvaluation([*alone, *(work.run(*one) for one in draws)])
        if folder is not None:
            _write(result, place)
    return result


@dataclass(frozen=True)
class _Work:
    """What all runs of an evaluation share."""

    detector: Detector
    sets: Mapping[str, SampleList]
    settings: EvaluationSettings
    threshold: float | Threshold | str | os.PathLike[str] | None
    place: Path
    resume: bool
    track: Track

    def run(self, count: int, seed: int, drawn: Draw) -> ShotRun:
        """Evaluate with one draw of references."""
        references = {f"{key}/{name}": paths for key, of in drawn.items() for name, paths in of.items()}
        detector = _with_draw(self.detector, self.sets, drawn, count, seed) if drawn else self.detector
        name = f"shots-{count}-seed-{seed}" if count else "shots-0"
        evaluation = evaluate(
            detector,
            list(self.sets.values()),
            self.settings,
            threshold=self.threshold,
            output=self.place / name,
            resume=self.resume and (self.place / name).is_dir(),
            track=_titled(self.track, name),
        )
        return ShotRun(count, seed, references, evaluation)


def _titled(track: Track, name: str) -> Track:
    return lambda what, total: track(f"{name}: {what}", total)


def _write(result: ShotEvaluation, folder: Path) -> None:
    content = {"shots.json": json.dumps(result.to_json(), indent=1) + "\n", "shots.md": result.to_markdown()}
    for name, text in content.items():
        with writing(folder / name), replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _with_draw(
    detector: Detector,
    sets: Mapping[str, SampleList],
    drawn: Draw,
    count: int,
    seed: int,
) -> Detector:
    files: dict[str, list[str]] = {}
    for key, classes in drawn.items():
        for name, paths in classes.items():
            if name in files:
                raise AnomalyCLIPError(
                    f"class {name!r} is in several data sets: evaluate them separately with --shots"
                )
            files[name] = [path_of(sets[key].root, path) for path in paths]
    return Detector(
        _Drawn(detector, files, count, seed),
        threshold=detector.threshold,
        tiling=detector.tiling,
        spec=detector.spec,
        value_range=detector.value_range,
    )


class _Drawn:
    """Scorers with the references of each class, which are encoded when the class is scored."""

    def __init__(self, detector: Detector, files: Mapping[str, list[str]], count: int, seed: int) -> None:
        self.image_size, self.framing = detector.scorer.image_size, framing_of(detector.scorer)
        self._detector, self._files = detector, files
        self._drawn = {"shots": count, "seed": seed}
        self._tallies = TallyByClass()

    def of_class(self, name: str) -> "_Lazy":
        """Return the scorer of a class."""
        return _Lazy(self, name, self._detector.of_class(name))

    def encoded(self, detector: Detector, name: str) -> Scorer:
        """Return the scorer of a class with its references."""
        return self._tallies.follow(remember(detector, fit(detector, self._files[name])).scorer, name)

    def remarks(self) -> list[str]:
        """Return what the images since the last call say about their fitness for the references, class by class."""
        return self._tallies.remarks()

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Refuse: references belong to a class."""
        raise AnomalyCLIPError("references are drawn for each class, and no class is given")

    def identity(self) -> dict[str, Any]:
        """Return what decides the scores of every class."""
        return {**self._detector.scorer.identity(), **self._drawn}

    def describe(self) -> Description:
        """Return what reports say of it."""
        about = self._detector.describe()
        count = self._drawn["shots"]
        noun = "reference" if count == 1 else "references"
        title = f"{about.title}, {count} {noun} for each class (draw {self._drawn['seed']})"
        return Description(title, {**about.facts, **self._drawn}, about.training)


class _Lazy:
    """The scorer of a class, whose references are encoded at the first image."""

    def __init__(self, all_classes: _Drawn, name: str, detector: Detector) -> None:
        self.image_size, self.framing = all_classes.image_size, all_classes.framing
        self._all, self._name, self._detector = all_classes, name, detector
        self._scorer: Scorer | None = None

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch."""
        return self._ready()(pixels)

    def identity(self) -> dict[str, Any]:
        """Return what decides the scores."""
        return self._all.identity()

    def describe(self) -> Description:
        """Return what reports say of it."""
        return self._all.describe()

    def over_class(
        self, scores: NDArray[np.float32], highest: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """Return what the scorer does with all images of the class."""
        together = getattr(self._ready(), "over_class", None)
        return None if together is None else together(scores, highest)

    def reference_pictures(self) -> tuple[bytes, ...]:
        """Return small JPEG pictures of the references, by their numbers."""
        pictures = getattr(self._ready(), "reference_pictures", None)
        return () if pictures is None else pictures()

    def _ready(self) -> Scorer:
        if self._scorer is None:
            self._scorer = self._all.encoded(self._detector, self._name)
        return self._scorer
