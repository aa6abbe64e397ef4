"""Runs of any size to counts, a histogram, the most anomalous images, and drift between groups, in bounded memory."""

import heapq
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyclip.addresses import as_address, as_place, folder_on_disk
from anomalyclip.distributed.tables import PARTS, rows_of
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.inputs import ImageFile, relative
from anomalyclip.overview.summary import records
from anomalyclip.predicting import PredictionRun, predict
from anomalyclip.prediction import Threshold
from anomalyclip.progress import Track, silent
from anomalyclip.runs import SETTINGS, read_settings
from anomalyclip.sharding import FOLDERS
from anomalyclip.spec import DetectorSpec
from anomalyclip.visualize import captioned
from anomalyclip.writers import ERRORS, PREDICTIONS

BINS = 10_000
"""Bins of equal width, from 0 to 1, that scores are counted in."""

GROUPS = ("run", "folder", "day")
"""What images can be compared by: the run or shard that they are from, their folder, or their day."""

_MOST_GROUPS = 1000

_DRIFT, _CHANCE = 0.1, 0.01
"""A group has drifted if its distribution is this far from that of the others, and not by chance."""

_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_/.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")


@dataclass
class Scores:
    """How many images have which score.

    Attributes
    ----------
    bins : ndarray of int64, shape (10000,)
        Images by score, in bins of equal width from 0 to 1.
    anomalous : int
        Images that were called anomalous.
    """

    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    anomalous: int = 0

    @property
    def count(self) -> int:
        """Images."""
        return int(self.bins.sum())

    def quantile(self, share: float) -> float:
        """Return the score that this share of the images is below, to 1/10,000."""
        if not self.count:
            return float("nan")
        return float(np.searchsorted(np.cumsum(self.bins), share * self.count) + 0.5) / BINS

    def add(self, scores: Sequence[float], anomalous: int) -> None:
        """Count images."""
        places = np.minimum((np.asarray(scores, np.float64) * BINS).astype(np.int64), BINS - 1)
        np.add.at(self.bins, places, 1)
        self.anomalous += anomalous


@dataclass(frozen=True)
class Drift:
    """How the scores of a group differ from those of all others.

    Attributes
    ----------
    group : str
        Its name.
    images : int
        Its images.
    median, other_median : float
        Of its scores, and of those of the others.
    distance : float
        Kolmogorov-Smirnov statistic: the largest difference of the two cumulative distributions, in [0, 1].
    p_value : float
        Chance of such a distance without any drift, corrected for the number of groups (Holm).
    """

    group: str
    images: int
    median: float
    other_median: float
    distance: float
    p_value: float

    @property
    def is_clear(self) -> bool:
        """Whether the distance is at least 0.1, and the corrected p-value below 0.01."""
        return self.distance >= _DRIFT and self.p_value < _CHANCE


@dataclass
class RunSummary:
    """What runs found.

    Attributes
    ----------
    scores : Scores
        Of all images.
    failed : int
        Images that could not be used.
    judged : bool
        Whether there was a threshold.
    highest : list of (float, str)
        Score and path of the most anomalous images, the highest first.
    groups : dict of str to Scores
        By group; empty if nothing was to be compared.
    """

    scores: Scores = field(default_factory=Scores)
    failed: int = 0
    judged: bool = False
    highest: list[tuple[float, str]] = field(default_factory=list)
    groups: dict[str, Scores] = field(default_factory=dict)

    def drifts(self) -> list[Drift]:
        """Return how each group differs from the others, the largest difference first.

        Both distributions are those of the bins, so that a distance is never larger than that of the scores themselves,
        and at most the share of one bin smaller. The p-value is the asymptotic one of Kolmogorov and Smirnov.
        """
        from scipy.special import kolmogorov

        found = []
        for name, group in self.groups.items():
            rest = Scores(self.scores.bins - group.bins)
            if not (group.count and rest.count):
                continue
            distance = float(np.abs(_cumulated(group) - _cumulated(rest)).max())
            size = group.count * rest.count / (group.count + rest.count)
            chance = float(kolmogorov(np.sqrt(size) * distance))
            found.append(Drift(name, group.count, group.quantile(0.5), rest.quantile(0.5), distance, chance))
        return sorted(_corrected(found), key=lambda drift: (-drift.distance, drift.group))

    def to_dict(self) -> dict[str, Any]:
        """Return everything JSON-ready, with the histogram in 100 bins."""
        return {
            "scored": self.scores.count,
            "failed": self.failed,
            "anomalous": self.scores.anomalous if self.judged else None,
            "quantiles": {f"{share:g}": self.scores.quantile(share) for share in (0.01, 0.1, 0.5, 0.9, 0.99)}
            if self.scores.count
            else {},
            "histogram": self.scores.bins.reshape(100, -1).sum(1).tolist(),
            "highest": [{"image_path": path, "pred_score": score} for score, path in self.highest],
            "drift": [{**drift.__dict__, "is_clear": drift.is_clear} for drift in self.drifts()],
        }


def _cumulated(scores: Scores) -> NDArray[np.float64]:
    return np.cumsum(scores.bins) / scores.count


def _corrected(drifts: Sequence[Drift]) -> list[Drift]:
    """Return them with p-values by Holm's method."""
    corrected, least = [], 0.0
    for rank, drift in enumerate(sorted(drifts, key=lambda drift: drift.p_value)):
        least = max(least, min(1.0, drift.p_value * (len(drifts) - rank)))
        corrected.append(Drift(**{**drift.__dict__, "p_value": least}))
    return corrected


def summarize(
    runs: Sequence[str | os.PathLike[str]],
    *,
    highest: int = 20,
    by: str | None = None,
    track: Track = silent,
) -> RunSummary:
    """Summarise runs of `predict`, with or without shards, as JSON lines or Parquet, in bounded memory.

    Parameters
    ----------
    runs : sequence of path
        Their folders, or folders that hold shards; also addresses.
    highest : int
        How many of the most anomalous images to name.
    by : {"run", "folder", "day"}, optional
        Groups of images whose scores are compared. ``day``: a date in the path such as 2026-11-28 or 20261128, or else
        the day on which the file was changed. None: run, if there are several.
    track : Track
        Reports progress.

    Raises
    ------
    AnomalyCLIPError
        A folder holds no results, a line or file is damaged, or there are more than 1,000 groups.

    Examples
    --------
    >>> import tempfile
    >>> from anomalyclip.demo import PICTURES
    >>> folder = tempfile.mkdtemp()
    >>> _ = predict(DetectorSpec("micro"), PICTURES, folder)
    >>> found = summarize([folder], highest=1)
    >>> found.scores.count, Path(found.highest[0][1]).name
    (12, 'corduroy_stain.jpg')
    """
    if by is not None and by not in GROUPS:
        raise AnomalyCLIPError(f"by {by!r}: expected one of {', '.join(GROUPS)}")
    with ExitStack() as stack:
        folders: dict[Path, str] = {}
        for place in map(as_place, runs):
            run = stack.enter_context(folder_on_disk(place, _is_listing))
            folders |= {one: str(place if one == run else place / one.name) for one in _folders(run)}
        return _summarize(folders, highest, by, track)


def _is_listing(name: str) -> bool:
    """Return whether an object is a list of results, and no map or picture."""
    return name.endswith((".jsonl", ".json", ".parquet"))


def _summarize(folders: Mapping[Path, str], highest: int, by: str | None, track: Track) -> RunSummary:
    if by is None and len(folders) > 1:
        by = "run"
    found = RunSummary()
    best: list[tuple[float, str]] = []
    with track("Reading", None) as advance:
        for folder, name in folders.items():
            name_of = _grouping(by, name)
            for rows in _in_blocks(_rows(folder)):
                advance()
                scored = [(score, path) for path, score, _ in rows if score is not None]
                found.failed += len(rows) - len(scored)
                found.judged |= any(label is not None for _, _, label in rows)
                best = heapq.nlargest(highest, [*best, *scored])
                _count(found, rows, name_of)
    found.highest = sorted(best, key=lambda entry: (-entry[0], entry[1]))
    return found


def draw(
    runs: Sequence[str | os.PathLike[str]],
    summary: RunSummary,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    draw: Callable[..., Any] = captioned,
    track: Track = silent,
) -> PredictionRun:
    """Draw the most anomalous images of a summary: they are scored again, with the model that the first run names.

    Parameters
    ----------
    runs, summary
        As given to and returned by `summarize`.
    output : path
        A folder for their heat maps and a page, as `anomalyclip.predicting.predict` writes them.
    overwrite : bool
        Replace the results in it.
    draw : callable
        See `anomalyclip.writers.PredictionWriter`.
    track : Track
        Reports progress.

    Raises
    ------
    AnomalyCLIPError
        The run does not say which model it used, or the model cannot be loaded.
    """
    with folder_on_disk(as_place(runs[0]), _is_listing) as run:
        settings = read_settings(_folders(run)[0])
    spec = (settings.get("about") or {}).get("spec")
    if not isinstance(spec, dict):
        raise AnomalyCLIPError(
            f"{runs[0]}: its {SETTINGS} does not say which model was used, so nothing can be drawn"
        )
    limits = settings.get("threshold")
    threshold = Threshold(**limits) if isinstance(limits, dict) else None
    detector = DetectorSpec.from_dict(spec).load(threshold=threshold)
    paths = [as_address(path) or path for _, path in summary.highest]
    base = (
        ""
        if any(map(as_address, paths))
        else os.path.commonpath(map(os.path.dirname, map(os.path.abspath, paths)))
    )
    images = [ImageFile(path, relative(path, base)) for path in paths]
    return predict(detector, images, output, save=["heatmap"], overwrite=overwrite, draw=draw, track=track)


_Row = tuple[str, float | None, bool | None]
"""Path, score, label; without a score the image could not be used."""


def _folders(run: Path) -> list[Path]:
    if (run / PREDICTIONS).is_file() or any(run.glob(PARTS)):
        return [run]
    shards = sorted(folder for folder in run.glob(FOLDERS) if (folder / PREDICTIONS).is_file())
    if not shards:
        raise AnomalyCLIPError(f"{run}: no results of `anomalyclip predict` in this folder")
    return shards


def _rows(folder: Path) -> Iterator[_Row]:
    if not (folder / PREDICTIONS).is_file():
        for row in rows_of(folder, ["path", "score", "label"]):
            yield row["path"], row["score"], row["label"]
        return
    yield from records(folder / PREDICTIONS, _scored)
    yield from records(folder / ERRORS, _unusable)


def _scored(line: dict[str, Any]) -> _Row:
    return str(line["image_path"]), float(line["pred_score"]), line["pred_label"]


def _unusable(line: dict[str, Any]) -> _Row:
    return str(line["image_path"]), None, None


def _in_blocks(rows: Iterable[_Row], size: int = 4096) -> Iterator[list[_Row]]:
    block: list[_Row] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _count(found: RunSummary, rows: Sequence[_Row], name_of: Callable[[str], str] | None) -> None:
    _add(found.scores, rows)
    if name_of is None:
        return
    by_group: dict[str, list[_Row]] = {}
    for row in rows:
        by_group.setdefault(name_of(row[0]), []).append(row)
    for name, mine in by_group.items():
        _add(found.groups.setdefault(name, Scores()), mine)
    if len(found.groups) > _MOST_GROUPS:
        raise AnomalyCLIPError(f"more than {_MOST_GROUPS:,} groups to compare: choose another --by")


def _add(scores: Scores, rows: Sequence[_Row]) -> None:
    scores.add(
        [float(score) for _, score, _ in rows if score is not None], sum(bool(label) for _, _, label in rows)
    )


def _grouping(by: str | None, run: str) -> Callable[[str], str] | None:
    if by == "run":
        return partial(_always, run)
    names: dict[str | None, Callable[[str], str]] = {"folder": os.path.dirname, "day": day_of}
    return names.get(by)


def _always(name: str, _: str) -> str:
    return name


def day_of(path: str) -> str:
    """Return the day of an image: the last date in its path, or else the day on which its file was changed.

    Examples
    --------
    >>> day_of("line 1/2026-11-28/a.png"), day_of("cam_20261128_0930.png"), day_of("2026/02/31/a.png")
    ('2026-11-28', '2026-11-28', 'unknown')
    """
    for year, _, month, day in reversed(_DAY.findall(path)):
        try:
            return date(int(year), int(month), int(day)).isoformat()
        except ValueError:  # 31 February
            continue
    try:
        return datetime.fromtimestamp(os.stat(path).st_mtime).date().isoformat()
    except (OSError, ValueError):
        return "unknown"
