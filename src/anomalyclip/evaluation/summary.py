"""The results of one evaluation, and the files that they are written to."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalyclip.data.catalog import catalog
from anomalyclip.evaluation.controls import not_beaten
from anomalyclip.evaluation.results import DatasetResult, Metrics, Writers, mean_metrics, to_json, write_files
from anomalyclip.evaluation.tables import SOURCE, Table, not_the_papers, tables, to_csv, to_latex, to_markdown
from anomalyclip.spec import DEFAULT_METHOD

if TYPE_CHECKING:
    from anomalyclip.data.meta import SampleList
    from anomalyclip.prediction import Threshold

_TRANSDUCTIVE = (
    "image scores of april-gan with references are scaled over all test images of a class, as published: a detector "
    "that sees one image cannot do that, and predict uses a constant from the references instead"
)

SIZE, SIGMA = 518, 4.0
"""Image size and smoothing of the paper's protocol."""


@dataclass(frozen=True)
class Evaluation:
    """Results of a run.

    Parameters
    ----------
    results, controls : sequence of DatasetResult
        Results of the model, and of the controls on the same data sets.
    about : mapping
        JSON-ready: model, settings, versions, hashes, time and memory.
    protocol, compare
        As for `anomalyclip.evaluation.tables.tables`.
    threshold : Threshold, optional
        The report counts the verdicts at this threshold.
    notes : sequence of str
        Notes for the reader: evaluated on training data, missing masks, settings that differ from the paper's.
    """

    results: Sequence[DatasetResult]
    controls: Sequence[DatasetResult] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = "paper"
    compare: bool = False
    threshold: "Threshold | None" = None
    notes: Sequence[str] = ()

    @property
    def mean(self) -> Metrics:
        """Mean of each metric over the classes; with several data sets, over their means. None: not applicable."""
        return mean_metrics(result.mean for result in self.results)

    @property
    def failed(self) -> list[str]:
        """The error message of each file that could not be used."""
        return [why for result in self.results for why in result.failed.values()]

    @property
    def tables(self) -> list[Table]:
        """The tables, with the summary first."""
        method = self.about.get("identity", {}).get("method", "anomalyclip")
        return tables(
            self.results, self.controls, protocol=self.protocol, compare=self.compare, method=method
        )

    def not_beaten(self) -> list[str]:
        """Return, in words, each metric for which a control's mean on a data set is as good as the model's."""
        found = []
        for result in self.results:
            controls = {
                control.scorer: control.mean for control in self.controls if control.key == result.key
            }
            found += [f"{result.key}: {words}" for words in not_beaten(result.mean, controls)]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the content of results.json."""
        return {
            **self.about,
            "protocol": self.protocol,
            "notes": list(self.notes),
            "threshold": None
            if self.threshold is None
            else {"score": self.threshold.score, "pixel": self.threshold.pixel},
            "results": [to_json(result) for result in self.results],
            "controls": [to_json(control) for control in self.controls],
            "controls_not_beaten": self.not_beaten(),
            **({"paper": self._paper()} if self.compare else {}),
        }

    def _paper(self) -> dict[str, Any]:
        figures = {
            table.title: {row.label: row.paper for row in table.rows if row.paper} for table in self.tables
        }
        return {"source": SOURCE, "figures": figures}


def _json(evaluation: Evaluation) -> str:
    return json.dumps(evaluation.to_json(), indent=1, allow_nan=False) + "\n"


def _images_csv(evaluation: Evaluation) -> str:
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["dataset", "class", "image", "defect", "anomaly", "score"])
    for result in evaluation.results:
        for entry in result.classes:
            for image in entry.images:
                writer.writerow(
                    [result.key, entry.name, image.image, image.defect, int(image.anomaly), image.score]
                )
    return buffer.getvalue()


WRITERS: Writers[Evaluation] = {
    "json": ("results.json", _json),
    "csv": ("results.csv", lambda evaluation: to_csv(evaluation.tables)),
    "md": ("results.md", lambda evaluation: to_markdown(evaluation.tables)),
    "latex": ("results.tex", lambda evaluation: to_latex(evaluation.tables)),
}
"""File name and content of each format of the results; `anomalyclip.evaluation.report` writes the report."""

_ALWAYS: Writers[Evaluation] = {"images": ("images.csv", _images_csv)}


def write_results(evaluation: Evaluation, folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write the results in these formats of `WRITERS`, and images.csv with the score of every image.

    Raises
    ------
    AnomalyCLIPError
        A file cannot be written.
    """
    return write_files(evaluation, folder, formats, WRITERS) + write_files(
        evaluation, folder, _ALWAYS, _ALWAYS
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries that the figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("anomalyclip", "torch", "numpy", "scipy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def describe_data(data: "SampleList", key: str) -> dict[str, Any]:
    """Return a description of a data set, with a hash of its listing (paths, masks and labels, not contents)."""
    listing = "\n".join(f"{s.image}\t{s.mask or ''}\t{s.class_name}\t{int(s.anomaly)}" for s in data)
    return {
        "dataset": key,
        "root": str(data.root),
        "images": len(data),
        "classes": len(data.classes),
        "source": data.source,
        "listing_sha256": hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest(),
    }


def data_notes(result: DatasetResult) -> list[str]:
    """Return notes that are needed to read a data set's figures correctly."""
    notes = []
    without = sum(entry.without_mask for entry in result.classes)
    if without:
        notes.append(
            f"{result.key}: {without} anomalous images have no mask: they are used for image-level metrics only"
        )
    missing = sum(len(entry.missing) for entry in result.classes)
    if missing:
        notes.append(
            f"{result.key}: {missing} files listed in meta.json do not exist and were skipped (see results.json)"
        )
    for entry in result.classes:
        if entry.missing and not entry.images:
            notes.append(
                f"{result.key}: the class {entry.name} is missing: none of its {len(entry.missing)} images exist, and "
                "the mean is over the other classes"
            )
    if len(result.failed) > missing:
        notes.append(
            f"{result.key}: {len(result.failed) - missing} files could not be used and were skipped (see results.json)"
        )
    return notes


def no_paper(result: DatasetResult) -> str | None:
    """Say why there is nothing of the paper to compare a data set with; None where there is."""
    if result.key not in catalog():
        return f"{result.key} is not in the catalogue, so it cannot be compared with the paper"
    if differ := not_the_papers(result):
        return (
            f"{result.key}: its mean is not compared with the paper's, which covers other classes ({differ})"
        )
    return None


def setting_notes(settings: Mapping[str, Any]) -> list[str]:
    """Return a note if settings differ from the paper's; otherwise, or for another method, an empty list.

    Examples
    --------
    >>> setting_notes({"image_size": 518, "sigma": 2.0})
    ["settings differ from the paper's: sigma 2.0 here, 4.0 in the paper"]
    """
    if settings.get("method") == "april-gan" and not {"references_sha256", "shots"}.isdisjoint(settings):
        return [_TRANSDUCTIVE]
    if settings.get("method", DEFAULT_METHOD) != DEFAULT_METHOD:
        return []
    differ = [
        f"{name.replace('_', ' ')} {settings[name]} here, {paper} in the paper"
        for name, paper in (("image_size", SIZE), ("sigma", SIGMA))
        if name in settings and settings[name] != paper
    ]
    return [f"settings differ from the paper's: {', '.join(differ)}"] if differ else []
