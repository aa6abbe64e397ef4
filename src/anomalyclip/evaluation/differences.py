"""How methods differ on the same images: 95 % intervals over images, and a paired test of the image AUROC."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyclip.evaluation.results import DatasetResult, mean_metrics
from anomalyclip.metrics.by_image import CLASSES, PixelCounts, pixel_counts, pixel_statistic
from anomalyclip.metrics.paired import (
    Difference,
    Paired,
    Statistic,
    bootstrap,
    delong,
    image_statistic,
    interval,
    mean_of,
)
from anomalyclip.progress import Track, silent

IMAGE, PIXEL = ("image_auroc", "image_ap"), ("pixel_auroc", "pixel_aupro_exact")
COMPARED = (*IMAGE, *PIXEL)
"""Metrics whose differences are given."""

MEAN = "mean"
"""What the mean over several data sets is filed under."""

Results = Mapping[str, Mapping[str, DatasetResult]]
Draws = dict[str, NDArray[np.float64]]


def save_counts(path: Path, maps: Sequence[Any], areas: Sequence[Any]) -> None:
    """Keep the pixels of a class, counted by image."""
    pixel_counts(maps, areas).save(path)


def differences(
    results: Results,
    counts: Mapping[str, Mapping[str, Sequence[Path]]],
    *,
    draws: int,
    seed: int,
    track: Track = silent,
) -> dict[str, dict[str, dict[str, Difference]]]:
    """Return by data set, method and metric the difference from the first method.

    Parameters
    ----------
    results : mapping of str to mapping of str to DatasetResult
        By data set and method, which all have the same images.
    counts : mapping of str to mapping of str to sequence of Path
        By data set and method the files of `save_counts`, in the order of the classes; one that is not there belongs
        to a class without masks.
    draws, seed : int
        As for `anomalyclip.metrics.paired.bootstrap`.
    track : Track
        Reports progress.

    Returns
    -------
    dict
        Of several data sets, the mean over them too, under `MEAN`. A metric that does not apply is left out.
    """
    names = list(next(iter(results.values())))
    found: dict[str, dict[str, dict[str, Difference]]] = {}
    drawn: dict[str, list[Draws]] = {metric: [] for metric in COMPARED}
    tested: dict[str, list[Paired]] = {name: [] for name in names}
    with track("Drawing again", len(results) * len(COMPARED)) as advance:
        for place, (key, of_set) in enumerate(results.items()):
            pairs = {name: _paired(of_set[name], of_set[names[0]]) for name in names}
            for name, pair in pairs.items():
                tested[name] += [pair] if pair is not None else []
            tests = {name: None if pair is None else pair.p for name, pair in pairs.items()}
            means = {name: result.mean for name, result in of_set.items()}
            found[key] = {name: {} for name in names[1:]}
            for number, metric in enumerate(COMPARED):
                values = _draws(of_set, counts[key], metric, draws, (seed, place, number))
                drawn[metric].append(values)
                for name in names[1:]:
                    p = tests[name] if metric == "image_auroc" else None
                    one = _difference(means, values, (name, names[0]), metric, p)
                    found[key][name] |= {} if one is None else {metric: one}
                advance()
    if len(results) > 1:
        found[MEAN] = _over_sets(results, names, drawn, tested)
    return found


def _difference(
    means: Mapping[str, Mapping[str, float | None]],
    values: Draws,
    pair: tuple[str, str],
    metric: str,
    p: float | None,
) -> Difference | None:
    """Return the difference of a pair of methods; None where the metric does not apply."""
    name, reference = pair
    one, other = means[name].get(metric), means[reference].get(metric)
    if one is None or other is None or name not in values:
        return None
    ends = interval(values[name] - values[reference])
    return None if ends is None else Difference(one - other, *ends, p)


def _draws(
    of_set: Mapping[str, DatasetResult],
    files: Mapping[str, Sequence[Path]],
    metric: str,
    draws: int,
    seed: tuple[int, ...],
) -> Draws:
    """Return a metric for each draw, by method; empty where it does not apply.

    Counts of pixels lose the order within a class of values: the draws are moved by what that makes of the metric.
    """
    if metric in IMAGE:
        labels = [_labels(entry.images) for entry in next(iter(of_set.values())).classes]
        statistics = {
            name: [
                image_statistic(of_class, _scores(entry.images), metric)
                for of_class, entry in zip(labels, result.classes, strict=True)
            ]
            for name, result in of_set.items()
        }
        return bootstrap(labels, statistics, count=draws, seed=seed)
    counted = {name: _read(paths) for name, paths in files.items()}
    known = next(iter(counted.values()))
    if not known:
        return {}
    pixel = {name: [pixel_statistic(one, metric) for one in several] for name, several in counted.items()}
    values = bootstrap(
        [one.labels for one in known],
        pixel,
        count=draws,
        seed=seed,
        cells=lambda images: max(images, CLASSES),
    )
    exact = {name: result.mean[metric] for name, result in of_set.items()}
    return {
        name: values[name] + (value - _once(pixel[name], known))
        for name, value in exact.items()
        if value is not None
    }


def _once(statistics: Sequence[Statistic], known: Sequence[PixelCounts]) -> float:
    """Return a metric on the images as they are."""
    values = [
        statistic(np.ones((1, len(one.normal))))[0] for statistic, one in zip(statistics, known, strict=True)
    ]
    return float(np.nanmean(values))


def _read(paths: Sequence[Path]) -> list[PixelCounts]:
    return [PixelCounts.load(path) for path in paths if path.is_file()]


def _paired(result: DatasetResult, reference: DatasetResult) -> Paired | None:
    pairs = [
        pair
        for one, other in zip(result.classes, reference.classes, strict=True)
        if (pair := delong(_labels(one.images), _scores(one.images), _scores(other.images))) is not None
    ]
    return mean_of(pairs) if pairs else None


def _over_sets(
    results: Results,
    names: Sequence[str],
    drawn: Mapping[str, Sequence[Draws]],
    tested: Mapping[str, Sequence[Paired]],
) -> dict[str, dict[str, Difference]]:
    """Return the differences of the means over data sets; sets are drawn independently of each other."""
    means = {name: mean_metrics(of_set[name].mean for of_set in results.values()) for name in names}
    found: dict[str, dict[str, Difference]] = {name: {} for name in names[1:]}
    for metric, several in drawn.items():
        there = [values for values in several if values]
        if not there:
            continue
        mean = {name: np.nanmean([values[name] for values in there], axis=0) for name in names}
        for name in names[1:]:
            p = mean_of(tested[name]).p if metric == "image_auroc" and tested[name] else None
            if (one := _difference(means, mean, (name, names[0]), metric, p)) is not None:
                found[name][metric] = one
    return found


def _labels(images: Sequence[Any]) -> NDArray[np.bool_]:
    return np.array([image.anomaly for image in images], dtype=bool)


def _scores(images: Sequence[Any]) -> NDArray[np.float64]:
    return np.array([image.score for image in images], dtype=np.float64)
