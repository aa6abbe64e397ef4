"""`compare`: several methods on the same data sets in one run, from specs to tables, differences and a report."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalyclip.clip.backbone import shared_backbones
from anomalyclip.data.meta import SampleList
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.evaluation.comparison_report import write_comparison
from anomalyclip.evaluation.contenders import Lineup, line_up, named, variants
from anomalyclip.evaluation.cost import costs
from anomalyclip.evaluation.differences import differences
from anomalyclip.evaluation.disagreements import Disagreement
from anomalyclip.evaluation.leaks import known_here
from anomalyclip.evaluation.plots import warn_unavailable
from anomalyclip.evaluation.results import DatasetResult
from anomalyclip.evaluation.run import Data, load_sets
from anomalyclip.evaluation.settings import ComparisonSettings
from anomalyclip.evaluation.side_by_side import SetWork
from anomalyclip.evaluation.standings import Comparison, Contender, write_standings
from anomalyclip.evaluation.summary import data_notes, describe_data, no_paper, setting_notes, versions
from anomalyclip.machine import peak_memory
from anomalyclip.progress import Track, silent
from anomalyclip.runs import RunFolder, begun
from anomalyclip.settings import chosen
from anomalyclip.spec import DEFAULT_METHOD, DetectorSpec

What = Sequence[str | DetectorSpec] | Mapping[str, DetectorSpec]


def compare(
    what: What,
    data: Data | Sequence[Data],
    settings: ComparisonSettings | None = None,
    *,
    spec: DetectorSpec | Mapping[str, Any] | None = None,
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
    spec : DetectorSpec or mapping of str to value, optional
        Common options of methods given by name; each gets those that it takes. As a mapping they need to be complete
        only together with `vary`.
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
    what: What,
    spec: DetectorSpec | Mapping[str, Any] | None,
    vary: Mapping[str, Sequence[Any]] | Sequence[str],
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
            work = SetWork(samples, self.lineup, place / key, self.settings, self.resume, self.draw)
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
                warnings = known_here(scorer, samples, value_range=self.lineup.value_range)
                notes += [f"{name}: {warning}" for warning in warnings]
        for name, identity in self.lineup.identities().items():
            if identity.get("method") != DEFAULT_METHOD:  # of that one the tables say it
                notes += [f"{name}: {note}" for note in setting_notes(identity)]
        for of_set in results.values():
            notes += data_notes(first := next(iter(of_set.values())))
            if self.settings.paper and (why := no_paper(first)):
                notes.append(why)
        return notes


def _write(found: Comparison, folder: Path, formats: Sequence[str]) -> None:
    write_standings(found, folder, formats)
    if "html" in formats and not write_comparison(found, folder):
        warn_unavailable("the report has no chart")
