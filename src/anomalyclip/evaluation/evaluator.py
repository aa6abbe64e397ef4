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
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from anomalyclip.data.meta import Sample, SampleList
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
from anomalyclip.images import read_mask
from anomalyclip.metrics import PixelMetrics, image_metrics
from anomalyclip.metrics.regions import region_areas
from anomalyclip.metrics.streaming import MEMORY, pixel_metrics_in_ranges
from anomalyclip.prediction import Threshold
from anomalyclip.writers import safe_name


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
        _require_images(data, done)
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
    results: list[ClassResult | Future[ClassResult]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="metrics") as pool:
        for name, samples, missing in _classes(data):
            file = folder / "classes" / f"{_file_name(name)}.json"
            if resume and file.is_file():
                results.append(ClassResult.load(file))
                for _ in samples:
                    advance()
                continue
            failed = {
                path: f"{data.root / path}: {data.source} lists it, but it does not exist" for path in missing
            }
            start = time.perf_counter()
            scored = source.of(samples, failed, advance)
            seconds = time.perf_counter() - start
            _wait(results)  # at most one class behind; otherwise maps would accumulate
            work = _Class(name, data.root, folder, options, missing)
            results.append(pool.submit(_finish, work, source, scored, failed, seconds, file))
        return tuple(result.result() if isinstance(result, Future) else result for result in results)


def _classes(data: SampleList) -> Iterator[tuple[str, list[Sample], tuple[str, ...]]]:
    """Yield each class with its samples and its missing files; a class whose files are all missing has no samples."""
    grouped: dict[str, tuple[list[Sample], list[str]]] = {
        name: ([], []) for name in (*data.classes, *data.vanished)
    }
    for sample in data:
        grouped[sample.class_name][0].append(sample)
    for gone in data.missing:
        grouped[gone.sample.class_name][1].append(gone.path)
    for name, (samples, missing) in grouped.items():
        yield name, samples, tuple(missing)


def _file_name(class_name: str) -> str:
    """Return what the files of a class are called: its name where that can be a file's, else with a digest of it."""
    name = safe_name(class_name).replace("/", "_")
    if name == class_name and len(os.fsencode(name)) <= _LONGEST:
        return name
    digest = hashlib.sha256(class_name.encode(errors="surrogateescape")).hexdigest()[:8]
    return os.fsdecode(os.fsencode(name)[:_LONGEST]) + f"-{digest}"


def _wait(results: Sequence[ClassResult | Future[ClassResult]]) -> None:
    if results and isinstance(results[-1], Future):
        results[-1].result()


def _require_images(data: SampleList, results: Sequence[ClassResult]) -> None:
    if not any(result.images for result in results):
        first = next((f": {why}" for result in results for why in result.failed.values()), "")
        raise AnomalyCLIPError(f"{data.root}: none of its {len(data)} test images can be used{first}")


def _finish(
    work: "_Class",
    source: Source,
    scored: Sequence[Scored],
    failed: dict[str, str],
    seconds: float,
    file: Path,
) -> ClassResult:
    """Compute and save the results of a class, and release its maps."""
    start = time.perf_counter()
    result = work.result(scored, failed)
    result = replace(result, seconds={"encode": seconds, "metrics": time.perf_counter() - start})
    result.save(file)
    source.release(scored)
    return result


@dataclass(frozen=True)
class _Class:
    name: str
    root: Path
    folder: Path
    options: Options
    missing: tuple[str, ...]

    def result(self, scored: Sequence[Scored], failed: dict[str, str]) -> ClassResult:
        with TemporaryDirectory(dir=_made(self.folder), prefix=".areas-") as scratch:
            known, areas = self._truth(scored, Path(scratch), failed)
            images = tuple(_image(item, in_pixel_metrics=index in known) for index, item in enumerate(scored))
            metrics: Metrics = dict.fromkeys(METRICS)
            thresholds: dict[str, float | None] = {}
            curves: dict[str, tuple[list[float], list[float]]] = {}
            _add_image_metrics(images, metrics, thresholds, curves)
            if any(area is not None for area in areas):
                maps = ArrayFiles([scored[index].map_file for index in known], read_map)
                pixels = pixel_metrics_in_ranges(
                    maps,
                    ArrayFiles(areas, np.load),
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
                name=_file_name(self.name),
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
                np.save(file, area)
        return known, areas

    def _areas(self, item: Scored) -> NDArray[np.int32] | None:
        if item.sample.mask is None:
            return None
        path = os.path.join(self.root, item.sample.mask)
        height, width = read_map(item.map_file).shape
        mask = read_mask(path, width if height == width else None)
        if mask.shape != (height, width):
            raise InputError(
                f"{path}: has {mask.shape[1]} x {mask.shape[0]} pixels, but its map {item.map_file} has {width} x "
                f"{height}: a map that is not square must have the size of its mask"
            )
        return region_areas(mask) if mask.any() else None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
