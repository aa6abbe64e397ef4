"""The evaluation of a data set: class by class, in memory that does not grow with the number of images.

While one class is encoded, the metrics of the previous class are computed in a thread.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomalyclip.addresses import Address
from anomalyclip.data.meta import Sample, SampleList
from anomalyclip.data.tree import path_of
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.evaluation.cases import draw_cases
from anomalyclip.evaluation.maps import ArrayFiles, Scored, Source, read_map
from anomalyclip.evaluation.results import (
    METRICS,
    Case,
    ClassResult,
    DatasetResult,
    ImageResult,
    Metrics,
    number,
)
from anomalyclip.files import open_output, staging, writing
from anomalyclip.images import read_mask
from anomalyclip.metrics import PixelMetrics, image_metrics
from anomalyclip.metrics.regions import region_areas
from anomalyclip.metrics.streaming import MEMORY, pixel_metrics_in_ranges
from anomalyclip.prediction import Threshold
from anomalyclip.writers import safe_name

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True)
class Options:
    """Options of an evaluation.

    Parameters
    ----------
    memory : float
        Megabytes for sorting pixels.
    max_fpr : float
        Highest false-positive rate in both AUPROs.
    cases : bool
        Draw the best and worst images of each class.
    threshold : Threshold, optional
        Anomalous regions at this threshold are outlined in the drawings.
    """

    memory: float = MEMORY
    max_fpr: float = 0.3
    cases: bool = True
    threshold: Threshold | None = None


_ROUNDING = 0.05
"""By how much the proportions of a map may differ from those of its mask: half a patch of sixteen or more."""

_LONGEST = 100
"""Bytes of a class's name that its files are called by; most file systems allow 255, endings included."""


def evaluate_set(
    source: Source,
    data: SampleList,
    folder: str | os.PathLike[str],
    *,
    scorer: str = "model",
    options: Options | None = None,
    resume: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> DatasetResult:
    """Evaluate a data set.

    Parameters
    ----------
    source : Source
        The source of scores and maps; it is closed at the end.
    data : SampleList
        The samples; their masks are resized to the maps by the published rule.
    folder : path
        Folder for the results of each class, in ``classes/``.
    scorer : str
        Name of the scorer in the results.
    options : Options, optional
        Memory, drawings.
    resume : bool
        Reuse the results of the classes that are already in the folder.
    advance : callable
        Called after every image.

    Returns
    -------
    DatasetResult

    Raises
    ------
    AnomalyCLIPError
        No image can be used, or something cannot be written.
    """
    folder = Path(folder)
    complete = False
    try:
        done = _evaluate_classes(source, data, folder, options or Options(), resume=resume, advance=advance)
        require_images(data, done)
        complete = True
    finally:
        source.close(complete=complete)
    return DatasetResult(data.name, str(data.root), done, scorer)


def pooled(data: SampleList) -> SampleList:
    """Return the same samples as one class, for one threshold for all of them."""
    samples = tuple(replace(sample, class_name="all") for sample in data)
    missing = tuple(replace(gone, sample=replace(gone.sample, class_name="all")) for gone in data.missing)
    return replace(data, samples=samples, missing=missing)


def _evaluate_classes(
    source: Source,
    data: SampleList,
    folder: Path,
    options: Options,
    *,
    resume: bool,
    advance: Callable[[], None],
) -> tuple[ClassResult, ...]:
    def done(name: str) -> ClassResult | None:
        file = class_file(folder, name)
        return ClassResult.load(file) if resume and file.is_file() else None

    def score(one: Listed) -> _ScoredClass:
        failed = one.failed(data)
        start = time.perf_counter()
        scored = source.of(one.samples, failed, advance)
        work = ClassWork(one.name, data.root, folder, options, one.missing)
        return _ScoredClass(work, scored, failed, time.perf_counter() - start)

    def finish(scored: _ScoredClass) -> ClassResult:
        result = scored.result()
        result.save(class_file(folder, result.name))
        source.release(scored.scored)
        return result

    return tuple(class_after_class(data, done=done, score=score, finish=finish, advance=advance))


def class_after_class(
    data: SampleList,
    *,
    done: Callable[[str], R | None],
    score: Callable[["Listed"], S],
    finish: Callable[[S], R],
    advance: Callable[[], None] = lambda: None,
) -> list[R]:
    """Evaluate the classes of a data set one after the other; while one is scored, the one before it is finished.

    Parameters
    ----------
    data : SampleList
    done : callable
        From the name of a class to the result that an earlier run left; None: there is none.
    score : callable
        From a class to what `finish` needs.
    finish : callable
        From that to the result, in a thread.
    advance : callable
        Called for each image of a class that is done.
    """
    results: list[R | Future[R]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="metrics") as pool:
        for one in _classes(data):
            if (there := done(one.name)) is not None:
                results.append(there)
                for _ in one.samples:
                    advance()
                continue
            scored = score(one)
            if results and isinstance(last := results[-1], Future):
                last.result()  # at most one class behind; otherwise maps would accumulate
            results.append(pool.submit(finish, scored))
        return [result.result() if isinstance(result, Future) else result for result in results]


@dataclass(frozen=True)
class Listed:
    """A class of a data set: its samples, and its files that do not exist."""

    name: str
    samples: tuple[Sample, ...]
    missing: tuple[str, ...]

    def failed(self, data: SampleList) -> dict[str, str]:
        """Return the files that cannot be used, and why, as far as it is known before any is read."""
        return {
            path: f"{data.root / path}: {data.source} lists it, but it does not exist"
            for path in self.missing
        }


def _classes(data: SampleList) -> Iterator[Listed]:
    """Yield each class; if all its files are missing, it has no samples."""
    grouped: dict[str, tuple[list[Sample], list[str]]] = {
        name: ([], []) for name in (*data.classes, *data.empty_classes)
    }
    for sample in data:
        grouped[sample.class_name][0].append(sample)
    for gone in data.missing:
        grouped[gone.sample.class_name][1].append(gone.path)
    for name, (samples, missing) in grouped.items():
        yield Listed(name, tuple(samples), tuple(missing))


def class_file(folder: Path, name: str) -> Path:
    """Return where the results of a class are kept in the folder of a data set."""
    return folder / "classes" / f"{file_name(name)}.json"


def file_name(class_name: str) -> str:
    """Return what the files of a class are called: its name where that can be a file's, else with a digest of it."""
    name = safe_name(class_name).replace("/", "_")
    if name == class_name and len(os.fsencode(name)) <= _LONGEST:
        return name
    digest = hashlib.sha256(class_name.encode(errors="surrogateescape")).hexdigest()[:8]
    return os.fsdecode(os.fsencode(name)[:_LONGEST]) + f"-{digest}"


def require_images(data: SampleList, results: Sequence[ClassResult]) -> None:
    """Refuse a data set none of whose images could be used."""
    if not any(result.images for result in results):
        first = next((f": {why}" for result in results for why in result.failed.values()), "")
        raise AnomalyCLIPError(f"{data.root}: none of its {len(data)} test images can be used{first}")


@dataclass(frozen=True)
class _ScoredClass:
    """A class whose images are scored."""

    work: "ClassWork"
    scored: Sequence[Scored]
    failed: dict[str, str]
    seconds: float

    def result(self) -> ClassResult:
        start = time.perf_counter()
        found = self.work.result(self.scored, self.failed)
        return replace(found, seconds={"encode": self.seconds, "metrics": time.perf_counter() - start})


@dataclass(frozen=True)
class ClassWork:
    """What the results of a class are made with.

    Parameters
    ----------
    name : str
        The class.
    root, folder : Path
        Of the data set, and of its results.
    options : Options
        Memory, drawings.
    missing : tuple of str
        Files of the class that do not exist.
    on_pixels : callable, optional
        Called with the maps of the images whose pixels are known, and the areas of their regions (None: all normal).
    """

    name: str
    root: Path | Address
    folder: Path
    options: Options
    missing: tuple[str, ...] = ()
    on_pixels: Callable[[Sequence[Any], Sequence[Any]], None] | None = None

    def result(self, scored: Sequence[Scored], failed: dict[str, str]) -> ClassResult:
        """Return the results; masks that cannot be used are named in `failed`."""
        with staging(self.folder) as scratch:
            known, areas = self._truth(scored, scratch, failed)
            images = tuple(_image(item, in_pixel_metrics=index in known) for index, item in enumerate(scored))
            metrics: Metrics = dict.fromkeys(METRICS)
            thresholds: dict[str, float | None] = {}
            curves: dict[str, tuple[list[float], list[float]]] = {}
            _add_image_metrics(images, metrics, thresholds, curves)
            if any(area is not None for area in areas):
                maps = ArrayFiles([scored[index].map_file for index in known], read_map)
                regions = ArrayFiles(areas, np.load)
                if self.on_pixels is not None:
                    self.on_pixels(maps, regions)
                pixels = pixel_metrics_in_ranges(
                    maps,
                    regions,
                    memory=self.options.memory,
                    max_fpr=self.options.max_fpr,
                    curve_points=400,
                )
                _add_pixel_metrics(pixels, metrics, thresholds, curves)
        cases: tuple[Case, ...] = ()
        if self.options.cases:
            cases = draw_cases(
                scored,
                root=self.root,
                folder=self.folder,
                name=file_name(self.name),
                threshold=self.options.threshold,
            )
        return ClassResult(
            self.name, images, failed, metrics, thresholds, curves, cases, missing=self.missing
        )

    def _truth(
        self, scored: Sequence[Scored], scratch: Path, failed: dict[str, str]
    ) -> tuple[dict[int, None], list[Path | None]]:
        """Return the images whose pixels are known, and the files with their regions' areas (None: all normal)."""
        known: dict[int, None] = {}
        areas: list[Path | None] = []
        for index, item in enumerate(scored):
            if not item.sample.has_mask:
                continue
            try:
                area = self._areas(item)
            except InputError as error:
                failed[item.sample.mask or item.sample.image] = str(error)
                continue
            known[index] = None
            areas.append(None)
            if area is not None:
                areas[-1] = file = scratch / f"{index}.npy"
                with writing(file), open_output(file) as output:
                    np.save(output, area)
        return known, areas

    def _areas(self, item: Scored) -> NDArray[np.int32] | None:
        if item.sample.mask is None:
            return None
        path = path_of(self.root, item.sample.mask)
        height, width = read_map(item.map_file).shape
        mask = read_mask(path, width if height == width else None)
        if mask.shape != (height, width) and _is_of_proportions(mask.shape, (height, width)):
            mask = read_mask(path, (height, width))  # of a model that keeps proportions
        if mask.shape != (height, width):
            raise InputError(
                f"{path}: has {mask.shape[1]} x {mask.shape[0]} pixels, but its map {item.map_file} has {width} x "
                f"{height}: a map that is not square must have the proportions of its mask"
            )
        return region_areas(mask) if mask.any() else None


def _is_of_proportions(mask: tuple[int, ...], map: tuple[int, int]) -> bool:
    """Return whether a map has the proportions of a mask, but for rounding to a model's patches."""
    return abs(mask[0] / mask[1] * map[1] / map[0] - 1) < _ROUNDING


def with_scores(result: ClassResult, scored: Sequence[Scored]) -> ClassResult:
    """Return the results of the same images with the same maps, but other image scores."""
    images = tuple(
        replace(image, score=item.score) for image, item in zip(result.images, scored, strict=True)
    )
    metrics, thresholds, curves = dict(result.metrics), dict(result.thresholds), dict(result.curves)
    _add_image_metrics(images, metrics, thresholds, curves)
    return replace(result, images=images, metrics=metrics, thresholds=thresholds, curves=curves)


def _image(item: Scored, *, in_pixel_metrics: bool) -> ImageResult:
    sample = item.sample
    return ImageResult(sample.image, sample.defect, sample.anomaly, item.score, in_pixel_metrics)


def _add_image_metrics(
    images: Sequence[ImageResult],
    metrics: Metrics,
    thresholds: dict[str, float | None],
    curves: dict[str, tuple[list[float], list[float]]],
) -> None:
    if len({image.anomaly for image in images}) < 2:
        return
    labels, scores = [image.anomaly for image in images], np.array([image.score for image in images])
    found = image_metrics(labels, scores, curve_points=400)
    metrics["image_auroc"] = number(found.auroc)
    metrics["image_ap"] = number(found.average_precision)
    metrics["image_f1_max"] = number(found.f1_max.f1)
    thresholds["image_f1"] = number(found.f1_max.threshold)
    if found.roc is not None and found.precision_recall is not None:
        curves["image_roc"] = _points(found.roc.fpr, found.roc.tpr)
        curves["image_pr"] = _points(found.precision_recall.recall, found.precision_recall.precision)


def _add_pixel_metrics(
    found: PixelMetrics,
    metrics: Metrics,
    thresholds: dict[str, float | None],
    curves: dict[str, tuple[list[float], list[float]]],
) -> None:
    metrics["pixel_auroc"] = number(found.auroc)
    metrics["pixel_aupro"] = number(found.aupro_published)
    metrics["pixel_aupro_exact"] = number(found.aupro_exact)
    metrics["pixel_ap"] = number(found.average_precision)
    metrics["pixel_f1_max"] = number(found.f1_max.f1)
    thresholds["pixel_f1"] = number(found.f1_max.threshold)
    thresholds["pixel_youden"] = number(found.youden.threshold)
    if found.roc is None or found.precision_recall is None or found.pro is None or np.isnan(found.auroc):
        return  # with only one label, there are no curves
    curves["pixel_roc"] = _points(found.roc.fpr, found.roc.tpr)
    curves["pixel_pr"] = _points(found.precision_recall.recall, found.precision_recall.precision)
    curves["pixel_pro"] = _points(found.pro.fpr, found.pro.pro)


def _points(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[list[float], list[float]]:
    """Return a curve as lists for JSON; five digits are more than a plot can show."""
    return x.round(5).tolist(), y.round(5).tolist()
