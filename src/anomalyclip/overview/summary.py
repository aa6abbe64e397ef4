"""The lines of a run to counts, a histogram and the most anomalous images, in bounded memory."""

import os
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json
from anomalyclip.nearest import NearestNormal
from anomalyclip.writers import ERRORS, PREDICTIONS

SHOWN = 1000
"""Images that have a thumbnail and a place on the page."""

BINS = 50
"""Bars of the histogram, from score 0 to 1."""

_ERRORS_SHOWN = 100

_T = TypeVar("_T")

_ENOUGH, _NEARLY_ALL, _ALIKE = 10, 0.9, 0.01
"""Images from which on remarks are made, the share of them that is nearly all, and a range of scores that are alike."""


@dataclass(frozen=True, order=True)
class Entry:
    """One image: the most anomalous comes first, and among equals the first by its path."""

    rank: float
    image_path: str
    label: bool | None = field(compare=False)
    heatmap: str | None = field(compare=False)
    time: float | None = field(default=None, compare=False)
    reference: str | None = field(default=None, compare=False)

    @property
    def score(self) -> float:
        """Score of the image, in [0, 1]."""
        return -self.rank


@dataclass
class Summary:
    """What a run found.

    Attributes
    ----------
    scored, anomalous, failed : int
        Images with a line, those called anomalous, and those that could not be used.
    threshold, pixel_threshold : float or None
        Of the lines; a run has one.
    lowest, highest : float
        Of the scores.
    normal_scores, anomalous_scores : list of int
        Images by score, in bins of equal width from 0 to 1; without a threshold all count as normal.
    top : list of Entry
        The most anomalous images, the highest score first.
    errors : list of (str, str)
        Path and reason of the first that could not be used, by path.
    folder : str or None
        What all image paths begin with.
    """

    scored: int = 0
    anomalous: int = 0
    failed: int = 0
    threshold: float | None = None
    pixel_threshold: float | None = None
    lowest: float = 1.0
    highest: float = 0.0
    normal_scores: list[int] = field(default_factory=lambda: [0] * BINS)
    anomalous_scores: list[int] = field(default_factory=lambda: [0] * BINS)
    top: list[Entry] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    folder: str | None = None

    def add(self, record: dict[str, Any], shown: int = SHOWN) -> None:
        """Count one line of predictions.jsonl."""
        score, label, path = float(record["pred_score"]), record["pred_label"], str(record["image_path"])
        self.scored += 1
        self.anomalous += bool(label)
        self.threshold, self.pixel_threshold = record["threshold"], record["pixel_threshold"]
        self.lowest, self.highest = min(self.lowest, score), max(self.highest, score)
        bins = self.anomalous_scores if label else self.normal_scores
        bins[min(int(score * BINS), BINS - 1)] += 1
        self.folder = _common(self.folder, os.path.dirname(path))
        nearest, heatmap = NearestNormal.of(record), record["files"].get("heatmap")
        reference = None if nearest is None else nearest.reference
        entry = Entry(-score, path, label, heatmap, record.get("time"), reference)
        if len(self.top) < shown or entry < self.top[-1]:
            insort(self.top, entry)
            del self.top[shown:]

    def remarks(self) -> list[str]:
        """Return what speaks against model or threshold: nearly all images anomalous, or all scores alike."""
        if self.scored < _ENOUGH:
            return []
        unless = "Unless most of them are defective"
        if self.anomalous >= _NEARLY_ALL * self.scored:
            return [
                f"{self.anomalous:,} of {self.scored:,} images are anomalous. {unless}, the threshold or the model "
                "does not suit these images: calibrate a threshold on normal images of this product (anomalyclip "
                "calibrate)"
            ]
        high = sum(self.anomalous_scores[-BINS // 10 :]) + sum(self.normal_scores[-BINS // 10 :])
        if high >= _NEARLY_ALL * self.scored:
            return [
                f"{high:,} of {self.scored:,} scores are above 0.9. {unless}, the model does not suit these images"
            ]
        if self.highest - self.lowest < _ALIKE:
            return [
                f"all {self.scored:,} scores lie between {self.lowest:.4f} and {self.highest:.4f}: the model hardly "
                "tells these images apart"
            ]
        return []

    def add_error(self, record: dict[str, Any]) -> None:
        """Count one line of errors.jsonl."""
        self.failed += 1
        insort(self.errors, (str(record["image_path"]), str(record["error"])))
        del self.errors[_ERRORS_SHOWN:]


def moment(seconds: float) -> str:
    """Return a time in a video as players show it.

    Examples
    --------
    >>> moment(17.344), moment(83.5), moment(3725)
    ('17.34 s', '1:23.50', '1:02:05.00')
    """
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


def summarize(folder: Path, *, shown: int = SHOWN) -> Summary:
    """Return what a folder of predictions holds.

    Raises
    ------
    AnomalyCLIPError
        A line is damaged.
    """
    summary = Summary()
    for record in predictions(folder):
        summary.add(record, shown)
    for error in records(folder / ERRORS, error_line):
        summary.add_error(error)
    return summary


def records(file: Path, use: Callable[[dict[str, Any]], _T]) -> Iterator[_T]:
    """Give what is made of the lines of a file, one by one; nothing if there is no such file.

    Parameters
    ----------
    file : Path
    use : callable
        Makes something of the content of a line; `dict` is the content itself. Where a line lacks a value or has
        another type there, this may fail: the line is damaged.

    Raises
    ------
    AnomalyCLIPError
        A line is damaged; it names the line.
    """
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                found = use(dict(parse_json(line)))
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                why = f"no {error}" if isinstance(error, KeyError) else error
                raise AnomalyCLIPError(
                    f"{file}, line {number} is damaged ({why}); delete it, or start anew."
                ) from None
            yield found


def predictions(folder: Path) -> Iterator[dict[str, Any]]:
    """Give the lines of predictions.jsonl one by one, each with what pages and tables need of it.

    Raises
    ------
    AnomalyCLIPError
        A line is damaged; it names the line.
    """
    return records(folder / PREDICTIONS, prediction_line)


_NUMBER = int | float | None
_TYPES: dict[str, Any] = {
    "image_path": str,
    "pred_score": int | float,
    "pred_label": bool | None,
    "threshold": _NUMBER,
    "pixel_threshold": _NUMBER,
    "files": dict,
}


def prediction_line(record: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a line of predictions.jsonl; LookupError, TypeError or ValueError if it is damaged."""
    for name, expected in _TYPES.items():
        if not isinstance(record[name], expected):
            raise TypeError(f"{name} is of the wrong type")
    if not 0 <= record["pred_score"] <= 1:
        raise ValueError("pred_score is not within 0 and 1")
    if not isinstance(record.get("time", 0), int | float):
        raise TypeError("time is no number")
    if not all(isinstance(file, str) for file in record["files"].values()):
        raise TypeError("files are no texts")
    return record


def error_line(record: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a line of errors.jsonl; LookupError if it is damaged."""
    return {name: str(record[name]) for name in ("image_path", "error")}


def _common(folder: str | None, other: str) -> str:
    if folder is None or folder == other:
        return other
    try:
        return os.path.commonpath([folder, other])
    except ValueError:  # one relative, one absolute; or several drives
        return ""
