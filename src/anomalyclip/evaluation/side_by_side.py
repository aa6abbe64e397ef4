"""A data set by everything that is compared: scored together, class after class, resumable, in bounded memory."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from anomalyclip.data.meta import Sample, SampleList
from anomalyclip.depth import Scale
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.contenders import Lineup
from anomalyclip.evaluation.differences import save_counts
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
from anomalyclip.evaluation.maps import Scored, Store, fill, over_class
from anomalyclip.evaluation.results import ClassResult, DatasetResult
from anomalyclip.evaluation.settings import ComparisonSettings
from anomalyclip.files import parse_json, replacing, writing
from anomalyclip.prediction import Prediction


@dataclass(frozen=True)
class _ScoredClass:
    """A class whose images all methods have scored."""

    listed: Listed
    scored: Mapping[str, Sequence[Scored]]
    failed: dict[str, str]
    seconds: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class SetWork:
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
            return [Disagreement.from_dict(case) for case in parse_json(cases.read_bytes())]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
            name: over_class(joint.scorers[name], self._kept(name, found)) for name in self.lineup.names
        }
        whole = {"encode": time.perf_counter() - start}
        seconds = {name: whole | spent.of(name) for name in scored}
        return _ScoredClass(of_class, scored, failed, seconds)

    def _kept(self, name: str, found: Mapping[str, Sample]) -> list[Scored]:
        """Return what one of them said of images by path."""
        maps = self.stores[self.leads[name]]
        return [self.stores[name].scored(path, sample, maps=maps) for path, sample in found.items()]

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
