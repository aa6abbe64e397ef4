"""`evaluate`: the paper's evaluation on one or several data sets, from a detector to tables and a report."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomalyclip.data.listing import load_samples
from anomalyclip.data.meta import SampleList
from anomalyclip.detector import Detector
from anomalyclip.engines.kept import of_run, prepare, told
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.controls import CONTROLS
from anomalyclip.evaluation.evaluator import Options, evaluate_set
from anomalyclip.evaluation.leaks import known_here
from anomalyclip.evaluation.maps import DetectorSource, FolderSource, Source, side_of_maps
from anomalyclip.evaluation.plots import warn_unavailable
from anomalyclip.evaluation.report import write_report
from anomalyclip.evaluation.results import DatasetResult
from anomalyclip.evaluation.settings import EvaluationSettings
from anomalyclip.evaluation.summary import (
    SIZE,
    Evaluation,
    data_notes,
    describe_data,
    no_paper,
    setting_notes,
    versions,
    write_results,
)
from anomalyclip.loading import as_detector, require_references
from anomalyclip.machine import peak_memory
from anomalyclip.prediction import Threshold, as_threshold
from anomalyclip.progress import Track, silent
from anomalyclip.runs import RunFolder, begun
from anomalyclip.settings import chosen
from anomalyclip.spec import DetectorSpec

Data = str | os.PathLike[str] | SampleList


def evaluate(
    detector: Detector | DetectorSpec | None,
    data: Data | Sequence[Data],
    settings: EvaluationSettings | None = None,
    *,
    threshold: float | Threshold | str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | RunFolder | None = None,
    resume: bool = False,
    track: Track = silent,
    **choices: Any,
) -> Evaluation:
    """Evaluate a detector on data sets with ground truth; memory does not grow with the number of images.

    Parameters
    ----------
    detector : Detector or DetectorSpec
        The detector to evaluate; None with `maps`.
    data : path, SampleList, or a sequence of these
        Folders of data sets (see `anomalyclip.data.listing.load_samples`).
    settings : EvaluationSettings, optional
        Protocol, formats, controls, files to save, ... None: the defaults.
    threshold : float, Threshold or path, optional
        The report counts the verdicts at this threshold. None: the detector's own, if it has one.
    output : path or RunFolder, optional
        Folder for results, the report and the state from which a run is resumed. None: nothing is kept.
    resume : bool
        Resume the run in `output`.
    track : Track
        Reports progress.
    **choices
        Single fields of `EvaluationSettings` (dataset, maps, controls, compare, formats, save, batch_size, ...); they
        override `settings`.

    Returns
    -------
    Evaluation
        Tables, figures per class and their means, notes; ``result.mean["pixel_auroc"]`` is in [0, 1].

    Raises
    ------
    AnomalyCLIPError
        An option is unknown, a data set cannot be listed or has no usable image, or a file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from anomalyclip.data.synthetic.writer import write_dataset
    >>> folder = tempfile.mkdtemp()
    >>> count = write_dataset(f"{folder}/parts", ["slate"], normal=2, anomalous=2, seed=1)
    >>> result = evaluate(DetectorSpec("micro"), f"{folder}/parts")
    >>> 0 <= result.mean["pixel_auroc"] <= 1
    True
    """
    settings = chosen(EvaluationSettings, settings, choices)
    _check(detector, settings)
    if output is None and (resume or settings.save):
        raise AnomalyCLIPError(f"to {'resume' if resume else 'save maps'}, a folder is needed: set output")
    folder = output if output is None or isinstance(output, RunFolder) else run_folder(output, resume=resume)
    sets = load_sets(data, settings.dataset, allow_outside=settings.allow_outside)
    limits = as_threshold(threshold)
    if detector is not None:
        if isinstance(detector, DetectorSpec):
            detector = of_run(detector, folder)
            prepare(detector, images=sum(map(len, sets.values())))
        detector = as_detector(detector, threshold=limits, by_class=True)
        require_references(detector)
        for name in {sample.class_name: None for samples in sets.values() for sample in samples}:
            detector.of_class(name)  # one that cannot be named is refused before anything is scored
        limits = detector.threshold
        detector.observations()  # what was scored before this run is no matter of it
    cases = folder is not None and "html" in settings.formats
    run = _Run(
        sets,
        detector,
        settings,
        options=Options(memory=settings.memory, cases=cases, threshold=limits),
        resume=folder is not None and folder.resume,
        track=track,
    )
    with begun(folder, run.settings, about=run.made_of) as place:
        results = run.model(place)
        control_results = run.controls(place) if settings.controls else []
        found = Evaluation(
            results,
            control_results,
            about=run.about(results),
            protocol=settings.protocol,
            compare=settings.compare,
            threshold=limits,
            notes=run.notes(results),
        )
        if folder is not None:
            _write(found, place, settings.formats)
    return found


def run_folder(output: str | os.PathLike[str] | None, *, resume: bool = False) -> RunFolder:
    """Return the folder for an evaluation's results; None is a new folder, ``runs/test-1``, ``-2``, ..."""
    return RunFolder("test", output, resume=resume, results="*/classes")


def _check(detector: Detector | DetectorSpec | None, settings: EvaluationSettings) -> None:
    """Refuse invalid options before anything is loaded."""
    if (detector is None) == (settings.maps is None):
        raise AnomalyCLIPError("give either a detector or a folder of maps")
    if settings.maps is not None and settings.save:
        raise AnomalyCLIPError("--save map cannot be combined with --from-maps: the maps already exist")


def load_sets(
    data: Data | Sequence[Data], keys: Sequence[str] | None, *, allow_outside: bool
) -> dict[str, SampleList]:
    """Return the data sets by name; `keys` are theirs in the catalogue, in the same order.

    Raises
    ------
    AnomalyCLIPError
        One cannot be listed, there are not as many keys as data sets, or two have one name.
    """
    several = [data] if isinstance(data, str | os.PathLike | SampleList) else list(data)
    if keys and len(keys) != len(several):
        raise AnomalyCLIPError(
            f"{len(several)} data sets, but {len(keys)} --dataset: give one for each, in the same order"
        )
    found: dict[str, SampleList] = {}
    for index, one in enumerate(several):
        key = keys[index] if keys else None
        samples = one if isinstance(one, SampleList) else load_samples(one, key, allow_outside=allow_outside)
        if samples.name in found:
            raise AnomalyCLIPError(
                f"{found[samples.name].root} and {samples.root} are both called {samples.name!r}: evaluate them "
                "separately"
            )
        found[samples.name] = samples
    return found


@dataclass(frozen=True)
class _Run:
    """One evaluation: detector or maps, data sets and options."""

    sets: Mapping[str, SampleList]
    detector: Detector | None
    chosen: EvaluationSettings
    options: Options
    resume: bool
    track: Track

    @property
    def maps(self) -> Path | None:
        """Where the maps are that are evaluated instead of a detector."""
        return self.chosen.maps

    def settings(self) -> dict[str, Any]:
        """Return everything that changes the results."""
        data = [describe_data(samples, key) for key, samples in self.sets.items()]
        identity = {"maps": str(self.maps)} if self.detector is None else self.detector.identity()
        return {"data": data, **identity}

    def made_of(self) -> dict[str, Any]:
        """Return the spec of the detector and its engine, if it has one."""
        return {} if self.detector is None else told(self.detector)

    def model(self, place: Path) -> list[DatasetResult]:
        results = []
        for key, samples in self.sets.items():
            if self.detector is None:
                assert self.maps is not None
                own = self.maps / key  # several data sets: one folder for each
                source: Source = FolderSource(own if len(self.sets) > 1 or own.is_dir() else self.maps)
            else:
                source = self._source(self.detector, samples, place / key, keep=bool(self.chosen.save))
            results.append(self._evaluate(key, samples, place / key, source))
        return results

    def controls(self, place: Path) -> list[DatasetResult]:
        if self.detector is not None:
            size, tiling = self.detector.scorer.image_size, self.detector.tiling
            value_range = self.detector.value_range
        else:
            assert self.maps is not None
            size, tiling, value_range = side_of_maps(self.maps) or SIZE, None, None
        plain = replace(self, options=replace(self.options, cases=False))
        results = []
        for name, control in CONTROLS.items():
            for key, samples in self.sets.items():
                folder = place / key / f"control-{name}"
                baseline = Detector(control(size), tiling=tiling, value_range=value_range)
                source = self._source(baseline, samples, folder, keep=False)
                results.append(plain._evaluate(key, samples, folder, source, name))
        return results

    def _source(self, detector: Detector, samples: SampleList, folder: Path, *, keep: bool) -> Source:
        where = folder if keep else folder / "unfinished"
        return DetectorSource(
            detector, samples.root, where, batch_size=self.chosen.batch_size, keep=keep, resume=self.resume
        )

    def _evaluate(
        self, key: str, samples: SampleList, folder: Path, source: Source, scorer: str = "model"
    ) -> DatasetResult:
        what = key if scorer == "model" else f"{key}, control: {scorer}"
        with self.track(what, len(samples)) as advance:
            return evaluate_set(
                source,
                samples,
                folder,
                scorer=scorer,
                options=self.options,
                resume=self.resume,
                advance=advance,
            )

    def about(self, results: Sequence[DatasetResult]) -> dict[str, Any]:
        """Return the provenance of the results: data, model, versions, time and memory."""
        encode, metrics = (sum(result.seconds(what) for result in results) for what in ("encode", "metrics"))
        about: dict[str, Any] = {"data": [describe_data(samples, key) for key, samples in self.sets.items()]}
        if self.detector is None:
            about |= {"title": f"maps from {self.maps}", "maps": str(self.maps)}
        else:
            described = self.detector.describe()
            about |= {
                "title": described.title,
                "model": dict(described.facts),
                "identity": self.detector.identity(),
                **self.made_of(),
            }
        return {
            **about,
            "versions": versions(),
            "seconds": {"encode": encode, "metrics": metrics},
            "peak_memory_mb": round(peak_memory(), 1),
        }

    def notes(self, results: Sequence[DatasetResult]) -> list[str]:
        """Return notes that are needed to read the figures correctly."""
        notes = []
        if self.detector is not None:
            scorer, tiling, value_range = (
                self.detector.scorer,
                self.detector.tiling,
                self.detector.value_range,
            )
            for data in self.sets.values():
                notes += known_here(scorer, data, tiling=tiling, value_range=value_range)
            notes += setting_notes(self.detector.identity())
            notes += self.detector.observations()
        for result in results:
            notes += data_notes(result)
        for result in results if self.chosen.compare else ():
            notes += [why] if (why := no_paper(result)) else []
        return notes


def _write(found: Evaluation, folder: Path, formats: Sequence[str]) -> None:
    write_results(found, folder, formats)
    if "html" in formats and not write_report(found, folder):
        warn_unavailable("the report has no curves")
