"""The results of a comparison: tables of methods by data set, and the files that are written."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anomalyclip.evaluation.cost import Cost
from anomalyclip.evaluation.differences import COMPARED, MEAN
from anomalyclip.evaluation.disagreements import Disagreement
from anomalyclip.evaluation.results import (
    METRICS,
    DatasetResult,
    Metrics,
    Writers,
    mean_metrics,
    to_json,
    write_files,
)
from anomalyclip.evaluation.tables import DASH, SOURCE, paper_method, paper_of, signed
from anomalyclip.metrics.paired import Difference
from anomalyclip.scorer import Description
from anomalyclip.spec import DetectorSpec

SHOWN = tuple(sorted(METRICS, key=lambda metric: METRICS[metric][0]))
"""Columns of a table: those of images, then those of pixels."""


@dataclass(frozen=True)
class Contender:
    """One of the methods that are compared.

    Parameters
    ----------
    name : str
        The method, and the options in which it differs from others of that method.
    spec : DetectorSpec
        Its options.
    description : Description
        What reports say about it.
    identity : mapping
        Everything that determines its scores.
    """

    name: str
    spec: DetectorSpec
    description: Description
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of a table: a method's metrics on a data set, within [0, 1], and the paper's for that method."""

    name: str
    metrics: Metrics
    paper: Metrics


@dataclass(frozen=True)
class Standing:
    """The methods on one data set, or on the mean over several."""

    title: str
    normal: int
    anomalous: int
    lines: tuple[Line, ...]

    def best(self, metric: str) -> float | None:
        """Return the highest value of a metric, in percent as it is shown; None where it does not apply."""
        values = [value for line in self.lines if (value := line.metrics.get(metric)) is not None]
        return round(100 * max(values), 1) if values else None


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Parameters
    ----------
    contenders : sequence of Contender
        What was compared, the reference first.
    results : mapping of str to mapping of str to DatasetResult
        By data set and name.
    differences : mapping of str to mapping of str to mapping of str to Difference
        By data set (``mean`` is the mean over several), name and metric: how each differs from the first.
    costs : mapping of str to Cost
        By name.
    disagreements : mapping of str to sequence of Disagreement
        By data set, the images about which they disagree most.
    about : mapping
        JSON-ready: data, versions, memory.
    paper : bool
        Whether the paper's figures are shown.
    notes : sequence of str
        Needed to read the figures correctly.
    """

    contenders: Sequence[Contender]
    results: Mapping[str, Mapping[str, DatasetResult]]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    costs: Mapping[str, Cost]
    disagreements: Mapping[str, Sequence[Disagreement]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    paper: bool = False
    notes: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Names of what was compared, the reference first."""
        return [one.name for one in self.contenders]

    @property
    def reference(self) -> str:
        """The name of what the others are compared with."""
        return self.names[0]

    @property
    def failed(self) -> list[str]:
        """The files that could not be used, and why."""
        first = [next(iter(of_set.values())) for of_set in self.results.values()]
        return [why for result in first for why in result.failed.values()]

    @property
    def mean(self) -> dict[str, Metrics]:
        """By name, the mean of each metric over the classes; of several data sets, the mean of their means."""
        return {
            name: mean_metrics(of_set[name].mean for of_set in self.results.values()) for name in self.names
        }

    @property
    def standings(self) -> list[Standing]:
        """The tables: the mean over several data sets first, then each of them."""
        each = [self._standing(key, of_set) for key, of_set in self.results.items()]
        if len(each) < 2:
            return each
        papers = {
            name: mean_metrics(line.paper for one in each for line in one.lines if line.name == name)
            if all(line.paper for one in each for line in one.lines if line.name == name)
            else {}
            for name in self.names
        }
        whole = Standing(
            f"Mean over {len(each)} data sets",
            sum(one.normal for one in each),
            sum(one.anomalous for one in each),
            tuple(Line(name, self.mean[name], papers[name]) for name in self.names),
        )
        return [whole, *each]

    def _standing(self, key: str, of_set: Mapping[str, DatasetResult]) -> Standing:
        first = of_set[self.reference]
        methods = {one.name: paper_method(one.spec.method) for one in self.contenders}
        return Standing(
            key,
            sum(entry.normal for entry in first.classes),
            sum(entry.anomalous for entry in first.classes),
            tuple(
                Line(name, of_set[name].mean, paper_of(of_set[name], methods[name]) if self.paper else {})
                for name in self.names
            ),
        )

    def differences_of(self, title: str) -> Mapping[str, Mapping[str, Difference]]:
        """Return the differences that belong to a table."""
        return self.differences.get(title if title in self.results else MEAN, {})

    def to_json(self) -> dict[str, Any]:
        """Return what results.json holds."""
        return {
            **self.about,
            "reference": self.reference,
            "notes": list(self.notes),
            "compared": {
                one.name: {
                    "title": one.description.title,
                    "spec": one.spec.to_dict(),
                    "identity": dict(one.identity),
                    "cost": asdict(self.costs[one.name]),
                }
                for one in self.contenders
            },
            "results": {
                key: {name: to_json(result) for name, result in of_set.items()}
                for key, of_set in self.results.items()
            },
            "differences": {
                key: {
                    name: {metric: asdict(one) for metric, one in several.items()}
                    for name, several in of_set.items()
                }
                for key, of_set in self.differences.items()
            },
            **({"paper": self._paper()} if self.paper else {}),
        }

    def _paper(self) -> dict[str, Any]:
        return {
            "source": SOURCE,
            "figures": {
                one.title: {line.name: line.paper for line in one.lines if line.paper}
                for one in self.standings
            },
        }


def percent(value: float | None) -> str:
    """Return a metric in percent.

    Examples
    --------
    >>> percent(0.91234), percent(None)
    ('91.2', '–')
    """
    return DASH if value is None else f"{100 * value:.1f}"


def spelled_out(one: Difference | None) -> str:
    """Return a difference in percent with its interval, and the p-value if there is one.

    Examples
    --------
    >>> spelled_out(Difference(0.021, -0.004, 0.05, 0.031)), spelled_out(Difference(0.3, 0.2, 0.4, 0.0))
    ('+2.1 [-0.4, +5.0], p = 0.031', '+30.0 [+20.0, +40.0], p < 0.001')
    """
    if one is None:
        return DASH
    value, low, high = (signed(100 * part, 1) for part in (one.value, one.low, one.high))
    text = f"{value} [{low}, {high}]"
    if one.p is None:
        return text
    return f"{text}, p {'< 0.001' if one.p < 0.001 else f'= {one.p:.3f}'}"


def milliseconds(seconds: float | None) -> str:
    """Return a time as a cost table shows it.

    Examples
    --------
    >>> milliseconds(1.2346), milliseconds(0.01234), milliseconds(None)
    ('1235', '12.3', '–')
    """
    if seconds is None:
        return DASH
    return f"{1000 * seconds:.0f}" if seconds >= 0.1 else f"{1000 * seconds:.1f}"


def to_markdown(found: Comparison) -> str:
    """Return tables, differences and costs in Markdown."""
    parts = []
    for one in found.standings:
        heads = ["method", *(" ".join(METRICS[metric]) for metric in SHOWN)]
        rows = [
            [line.name, *(_with_paper(line, metric, one.best(metric)) for metric in SHOWN)]
            for line in one.lines
        ]
        images = f"{one.normal} normal and {one.anomalous} anomalous images"
        parts.append(f"## {one.title}\n\n{images}.\n\n{_pipes(heads, rows)}")
        if of_set := found.differences_of(one.title):
            heads = ["method", *(" ".join(METRICS[metric]) for metric in COMPARED)]
            rows = [
                [name, *(spelled_out(several.get(metric)) for metric in COMPARED)]
                for name, several in of_set.items()
            ]
            parts.append(f"Difference from {found.reference}:\n\n{_pipes(heads, rows)}")
    heads = ["method", "ms per image alone", "shared pass", "own part", "GFLOP", "ms per class for texts"]
    rows = [[name, *_cost(cost)] for name, cost in found.costs.items()]
    parts.append(f"## Cost\n\n{_pipes(heads, rows)}")
    note = f" Paper: {SOURCE}." if found.paper else ""
    return (
        "\n\n".join(parts)
        + "\n\nPercent; the best of a column is bold. Brackets: 95 % bootstrap interval over images, resampled "
        f"within each class and label. p: DeLong's paired test.{note}\n"
    )


def _with_paper(line: Line, metric: str, best: float | None) -> str:
    value = line.metrics.get(metric)
    text = percent(value)
    if value is not None and best is not None and round(100 * value, 1) == best:
        text = f"**{text}**"
    known = line.paper.get(metric)
    return text if known is None else f"{text} (paper {percent(known)})"


def _cost(cost: Cost) -> list[str]:
    operations = DASH if cost.gflop is None else f"{cost.gflop:.3g}"
    times = [milliseconds(value) for value in (cost.alone, cost.shared, cost.own)]
    return [*times, operations, milliseconds(cost.texts)]


def _pipes(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_csv(found: Comparison) -> str:
    """Return metrics by data set, class and method as CSV: within [0, 1], unrounded, empty where they do not apply."""
    return _csv(["dataset", "class", "method", "normal", "anomalous", *METRICS], _metric_rows(found))


def _metric_rows(found: Comparison) -> Iterator[list[Any]]:
    for one in found.standings:
        key = one.title if one.title in found.results else MEAN
        for line in one.lines:
            yield [key, MEAN, line.name, one.normal, one.anomalous, *_cells(line.metrics)]
            for entry in found.results[key][line.name].classes if key in found.results else ():
                yield [key, entry.name, line.name, entry.normal, entry.anomalous, *_cells(entry.metrics)]


def _cells(metrics: Metrics) -> list[str]:
    return ["" if (value := metrics.get(metric)) is None else repr(float(value)) for metric in METRICS]


def images_csv(found: Comparison) -> str:
    """Return the score of every image by every method as CSV."""
    rows: list[list[Any]] = []
    for key, of_set in found.results.items():
        for entries in zip(*(of_set[name].classes for name in found.names), strict=True):
            for images in zip(*(entry.images for entry in entries), strict=True):
                first = images[0]
                scores = [image.score for image in images]
                rows.append([key, entries[0].name, first.image, first.defect, int(first.anomaly), *scores])
    return _csv(["dataset", "class", "image", "defect", "anomaly", *found.names], rows)


def _csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return buffer.getvalue()


WRITERS: Writers[Comparison] = {
    "json": ("results.json", lambda found: json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"),
    "csv": ("results.csv", to_csv),
    "md": ("results.md", to_markdown),
}
"""File name and content of each format; the report is made by `anomalyclip.evaluation.comparison_report`."""

_ALWAYS: Writers[Comparison] = {"images": ("images.csv", images_csv)}


def write_standings(found: Comparison, folder: Path, formats: Iterable[str]) -> None:
    """Write the results in these formats of `WRITERS`, and images.csv with the scores of every image.

    Raises
    ------
    AnomalyCLIPError
        A file cannot be written.
    """
    write_files(found, folder, formats, WRITERS)
    write_files(found, folder, _ALWAYS, _ALWAYS)
