"""`compare`: several methods on the same data sets in one run, from specs to tables, differences and a report."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from anomalyclip.clip.backbone import shared_backbones
from anomalyclip.data.meta import Sample, SampleList
from anomalyclip.depth import Scale
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.evaluation.contenders import Lineup, line_up, named, variants
from anomalyclip.evaluation.cost import costs
from anomalyclip.evaluation.differences import differences, save_counts
from anomalyclip.evaluation.disagreements import Disagreement, draw_disagreements
from anomalyclip.evaluation.evaluator import (
    ClassWork,
    Listed,
    Options,
    class_after_class,
    class_file,
    file_name,
    require_images,
    with_scores,
)
from anomalyclip.evaluation.joint import Spent, stream
from anomalyclip.evaluation.leaks import trained_on_this
from anomalyclip.evaluation.maps import Scored, Store, fill
from anomalyclip.evaluation.results import ClassResult, DatasetResult
from anomalyclip.evaluation.run import Data, load_sets
from anomalyclip.evaluation.settings import ComparisonSettings
from anomalyclip.evaluation.standings import Comparison, Contender, write_standings
from anomalyclip.evaluation.summary import data_notes, describe_data, no_paper, versions
from anomalyclip.files import replacing, writing
from anomalyclip.machine import peak_memory
from anomalyclip.prediction import Prediction
from anomalyclip.progress import Track, silent
from anomalyclip.runs import RunFolder, begun
from anomalyclip.settings import chosen
from anomalyclip.spec import DetectorSpec

What = Sequence[str | DetectorSpec] | Mapping[str, DetectorSpec]


def compare(
    what: What,
    data: Data | Sequence[Data],
    settings: ComparisonSettings | None = None,
    *,
    spec: DetectorSpec | None = None,
    vary: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    output: str | os.PathLike[str] | RunFolder | None = None,
    resume: bool = False,
    track: Track = silent,
    **choices: Any,
) -> Comparison:
    """Compare methods, or one method with several options, on the same images.

    Every image is decoded once. Methods with the same backbone share the pass through it, and those with the same
    maps share their metrics.

    Parameters
    ----------
    what : sequence of str or DetectorSpec, or mapping of str to DetectorSpec
        Methods by name, each with its own options after commas (``"words,templates=imagenet"``), or specs; the keys of
        a mapping are their names. The others are compared with the first. A method that needs the class name takes it
        from the data set.
    data : path, SampleList, or a sequence of these
        Folders of data sets (see `anomalyclip.data.listing.load_samples`).
    settings : ComparisonSettings, optional
        Data, formats, bootstrap, ... None: the defaults.
    spec : DetectorSpec, optional
        Common options of methods given by name; each gets those that it takes.
    vary : mapping of str to sequence, or sequence of str
        Values to try, by option: ``{"sigma": [2, 4, 8]}``; several options give every combination.
    output : path or RunFolder, optional
        Folder for results, the report and the state from which a run is resumed. None: nothing is kept.
    resume : bool
        Resume the run in `output`.
    track : Track
        Reports progress.
    **choices
        Single fields of `ComparisonSettings` (dataset, paper, formats, draws, batch_size, ...); they
        override `settings`.

    Returns
    -------
    Comparison
        By data set and name the results of `anomalyclip.evaluate`, differences with intervals, and costs.

    Raises
    ------
    AnomalyCLIPError
        An option is unknown, a method cannot be compared (all are checked before the first image is scored), a data set
        cannot be listed or has no usable image, or a file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from anomalyclip.data.synthetic.writer import write_dataset
    >>> folder = tempfile.mkdtemp()
    >>> count = write_dataset(f"{folder}/parts", ["slate"], normal=2, anomalous=2, seed=1)
    >>> found = compare(["anomalyclip"], f"{folder}/parts", spec=DetectorSpec("micro"), vary={"sigma": [4.0, 2.0]})
    >>> found.names, found.differences["parts"]["anomalyclip, sigma 2"]["image_auroc"].value
    (['anomalyclip, sigma 4', 'anomalyclip, sigma 2'], 0.0)
    """
    settings = chosen(ComparisonSettings, settings, choices)
    specs = _specs(what, spec, vary)
    if output is None and resume:
        raise AnomalyCLIPError("to resume, a folder is needed: set output")
    folder = output if output is None or isinstance(output, RunFolder) else run_folder(output, resume=resume)
    sets = load_sets(data, settings.dataset, allow_outside=settings.allow_outside)
    with shared_backbones():
        draw = folder is not None and "html" in settings.formats
        resume = folder is not None and folder.resume
        run = _Run(sets, line_up(specs, sets), settings, resume, draw, track)
        with begun(folder, run.determinants, about=run.made_of) as place:
            found = run.comparison(place)
            if folder is not None:
                _write(found, place, settings.formats)
    return found


def run_folder(output: str | os.PathLike[str] | None, *, resume: bool = False) -> RunFolder:
    """Return the folder for a comparison's results; None is a new folder, ``runs/compare-1``, ``-2``, ..."""
    return RunFolder("compare", output, resume=resume, results="*/*/classes")


def _specs(
    what: What, spec: DetectorSpec | None, vary: Mapping[str, Sequence[Any]] | Sequence[str]
) -> Mapping[str, DetectorSpec]:
    if isinstance(what, Mapping):
        if spec is not None or vary:
            raise AnomalyCLIPError("named specs are complete: leave out spec and vary")
        if len(what) < 2:
            raise AnomalyCLIPError("nothing to compare with: give two or more specs")
        return what
    if all(isinstance(one, str) for one in what):
        return named(variants(spec, [str(one) for one in what], vary))
    if spec is not None or not all(isinstance(one, DetectorSpec) for one in what):
        raise AnomalyCLIPError("give either methods by name, with spec for what they share, or whole specs")
    return named(each for one in what for each in variants(one, vary=vary))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Run:
    """One comparison: data sets, methods and settings."""

    sets: Mapping[str, SampleList]
    lineup: Lineup
    settings: ComparisonSettings
    resume: bool
    draw: bool
    track: Track

    def determinants(self) -> dict[str, Any]:
        """Return everything that changes the results."""
        data = [describe_data(samples, key) for key, samples in self.sets.items()]
        identities = self.lineup.identities()
        said = json.dumps(identities, sort_keys=True)
        return {
            "data": data,
            "compared": self.lineup.names,
            "reference": identities[self.lineup.names[0]],
            "identities_sha256": hashlib.sha256(said.encode()).hexdigest(),
        }

    def made_of(self) -> dict[str, Any]:
        """Return the specs by name."""
        return {"specs": {name: spec.located().to_dict() for name, spec in self.lineup.specs.items()}}

    def comparison(self, place: Path) -> Comparison:
        results: dict[str, dict[str, DatasetResult]] = {}
        cases: dict[str, list[Disagreement]] = {}
        counts: dict[str, dict[str, list[Path]]] = {}
        for key, samples in self.sets.items():
            work = _SetWork(samples, self.lineup, place / key, self.settings, self.resume, self.draw)
            with self.track(key, len(samples)) as advance:
                results[key], cases[key] = work.results(advance)
            counts[key] = work.count_files()
        return Comparison(
            contenders=self._contenders(),
            results=results,
            differences=differences(
                results, counts, draws=self.settings.draws, seed=self.settings.seed, track=self.track
            ),
            costs=costs(self.lineup, results),
            disagreements=cases,
            about={
                "data": [describe_data(samples, key) for key, samples in self.sets.items()],
                "versions": versions(),
                "peak_memory_mb": round(peak_memory(), 1),
            },
            paper=self.settings.paper,
            notes=self._notes(results),
        )

    def _contenders(self) -> list[Contender]:
        identities = self.lineup.identities()
        return [
            Contender(name, spec, self.lineup.scorers[name].describe(), identities[name])
            for name, spec in self.lineup.specs.items()
        ]

    def _notes(self, results: Mapping[str, Mapping[str, DatasetResult]]) -> list[str]:
        notes = []
        for samples in self.sets.values():
            for name, scorer in self.lineup.scorers.items():
                if warning := trained_on_this(scorer.describe().training, samples):
                    notes.append(f"{name}: {warning}")
        for of_set in results.values():
            notes += data_notes(first := next(iter(of_set.values())))
            if self.settings.paper and (why := no_paper(first)):
                notes.append(why)
        return notes


@dataclass(frozen=True)
class _ScoredClass:
    """A class whose images all methods have scored."""

    listed: Listed
    scored: Mapping[str, Sequence[Scored]]
    failed: dict[str, str]
    seconds: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class _SetWork:
    """One data set, scored by all methods together, class by class."""

    samples: SampleList
    lineup: Lineup
    place: Path
    settings: ComparisonSettings
    resume: bool
    draw: bool

    def folder(self, name: str) -> Path:
        """Return the folder for the results of one method."""
        return self.place / file_name(name.replace(", ", "-").replace(" ", "_"))

    @cached_property
    def leads(self) -> dict[str, str]:
        """By name, the first method with the same maps."""
        return self.lineup.maps()

    @cached_property
    def scale(self) -> Scale:
        """One scale for all images of more than 8 bits."""
        assumed = next((store.value_range for store in self.stores.values() if store.value_range), None)
        return Scale(self.lineup.value_range, assumed=assumed)

    @cached_property
    def stores(self) -> dict[str, Store]:
        """Scores and maps, kept until a class is done."""
        return {
            name: Store(self.folder(name) / "unfinished", maps=self.leads[name] == name, resume=self.resume)
            for name in self.lineup.names
        }

    def results(self, advance: Callable[[], None]) -> tuple[dict[str, DatasetResult], list[Disagreement]]:
        """Return the results of each, and the images about which they disagree most."""
        complete = False
        try:
            done = class_after_class(
                self.samples,
                done=self._done,
                score=partial(self._score, advance=advance),
                finish=self._finish,
                advance=advance,
            )
            require_images(self.samples, [results[self.lineup.names[0]] for results, _ in done])
            complete = True
        finally:
            for store in self.stores.values():
                store.close(complete=complete)
        key, root = self.samples.name, str(self.samples.root)
        return (
            {
                name: DatasetResult(key, root, tuple(results[name] for results, _ in done), name)
                for name in self.lineup.names
            },
            [case for _, cases in done for case in cases],
        )

    def count_files(self) -> dict[str, list[Path]]:
        """Return by name the files with the pixels of each class, counted by image."""
        return {
            name: [
                self._counts(self.leads[name], of_class)
                for of_class in (*self.samples.classes, *self.samples.empty_classes)
            ]
            for name in self.lineup.names
        }

    def _counts(self, lead: str, of_class: str) -> Path:
        return class_file(self.folder(lead), of_class).with_suffix(".npz")

    def _cases(self, of_class: str) -> Path:
        return class_file(self.place / "disagreements", of_class)

    def _done(self, of_class: str) -> tuple[dict[str, ClassResult], list[Disagreement]] | None:
        files = {name: class_file(self.folder(name), of_class) for name in self.lineup.names}
        cases = self._cases(of_class)
        if not (self.resume and all(file.is_file() for file in [*files.values(), *[cases] * self.draw])):
            return None
        return {name: ClassResult.load(file) for name, file in files.items()}, self._read_cases(cases)

    def _read_cases(self, cases: Path) -> list[Disagreement]:
        if not self.draw:
            return []
        try:
            return [Disagreement.from_dict(case) for case in json.loads(cases.read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AnomalyCLIPError(
                f"{cases}: damaged ({error}); delete it, and --resume evaluates this class again"
            ) from None

    def _score(self, of_class: Listed, *, advance: Callable[[], None]) -> _ScoredClass:
        failed = of_class.failed(self.samples)
        spent = Spent()
        start = time.perf_counter()
        joint = self.lineup.joint(of_class.name)

        def add(predictions: dict[str, Prediction], paths: Mapping[str, Sample]) -> None:
            for name, prediction in predictions.items():
                self.stores[name].add(prediction, paths[str(prediction.image_path)].image)

        found = fill(
            of_class.samples,
            self.samples.root,
            has=lambda path: all(store.has(path) for store in self.stores.values()),
            stream=partial(stream, joint, batch_size=self.settings.batch_size, spent=spent, scale=self.scale),
            add=add,
            failed=failed,
            advance=advance,
        )
        scored = {
            name: [
                store.scored(path, sample, maps=self.stores[self.leads[name]])
                for path, sample in found.items()
            ]
            for name, store in self.stores.items()
        }
        whole = {"encode": time.perf_counter() - start}
        seconds = {name: whole | spent.of(name) for name in scored}
        return _ScoredClass(of_class, scored, failed, seconds)

    def _finish(self, scored: _ScoredClass) -> tuple[dict[str, ClassResult], list[Disagreement]]:
        """Compute and save the results of a class, and release its maps."""
        results: dict[str, ClassResult] = {}
        options = Options(memory=self.settings.memory, cases=False)
        of_class, missing = scored.listed.name, scored.listed.missing
        for name, lead in self.leads.items():
            start = time.perf_counter()
            if name == lead:
                counts = partial(save_counts, self._counts(lead, of_class))
                folder = self.folder(name)
                work = ClassWork(of_class, self.samples.root, folder, options, missing, counts)
                result = work.result(scored.scored[name], scored.failed)
            else:
                result = with_scores(results[lead], scored.scored[name])
            seconds = {**scored.seconds[name], "metrics": time.perf_counter() - start}
            results[name] = replace(result, seconds=seconds)
        cases = self._drawn(of_class, scored) if self.draw else []
        for name, result in results.items():
            result.save(class_file(self.folder(name), of_class))
        for lead in set(self.leads.values()):
            self.stores[lead].release(scored.scored[lead])
        return results, cases

    def _drawn(self, of_class: str, scored: _ScoredClass) -> list[Disagreement]:
        """Draw the images on which the methods disagree most, save what is said about them, and return it."""
        cases = draw_disagreements(
            of_class,
            scored.scored,
            self.leads,
            root=self.samples.root,
            folder=self.place,
            stem_of_class=file_name(of_class),
        )
        path = self._cases(of_class)
        with writing(path), replacing(path) as temporary:
            temporary.write_text(json.dumps([asdict(case) for case in cases]) + "\n", encoding="utf-8")
        return cases


def _write(found: Comparison, folder: Path, formats: Sequence[str]) -> None:
    write_standings(found, folder, [kind for kind in formats if kind != "html"])
    if "html" in formats:
        from anomalyclip.evaluation.comparison_report import write_comparison

        if not write_comparison(found, folder):
            warnings.warn(
                "the report has no chart because matplotlib is not installed: pip install 'anomalyclip[report]'",
                AnomalyCLIPWarning,
                stacklevel=3,
            )
