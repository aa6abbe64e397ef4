"""All pixel metrics of a class compared with one AUROC of scikit-learn on the same arrays, in the same process.

    python benchmarks/metrics.py                       # 30 maps of 518 x 518, four kinds of maps
    python benchmarks/metrics.py --images 200 --json   # a large class; JSON on the standard output

`ratio` is the time of `pixel_metrics` (AUROC, average precision, F1-max, Youden, both AUPROs) divided by that of
`roc_auc_score` alone; `over_sort` is the same divided by one `np.sort` of the maps, the minimum for any method that
sorts. `peak_mib` is the memory that `pixel_metrics` allocates in addition to its arguments. Times are the best of
`--repeats` interleaved rounds.
"""

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from anomalyclip.metrics import pixel_metrics


def blobs(rng: np.random.Generator, shape: tuple[int, int, int], share: float) -> np.ndarray:
    """Masks with smooth regions: `share` of the pixels of every second image, none in the others."""
    masks = np.zeros(shape, dtype=np.uint8)
    for mask in masks[::2]:
        field = ndimage.gaussian_filter(rng.standard_normal(shape[1:], dtype=np.float32), 12)
        mask[field > np.quantile(field, 1 - share)] = 1
    return masks


def smooth_maps(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """Filter noise plus a fainter copy of the mask by sigma 4, as the maps of a model are filtered."""
    maps = rng.standard_normal(masks.shape, dtype=np.float32) + masks * np.float32(0.1)
    return np.stack([ndimage.gaussian_filter(scores, 4) for scores in maps])


def cases(images: int, size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    masks = blobs(rng, (images, size, size), 0.06)
    smooth = smooth_maps(rng, masks)
    return {
        "smooth": (masks, smooth),
        "random": (masks, rng.random(masks.shape, dtype=np.float32)),
        "tied (float16)": (masks, smooth.astype(np.float16)),
        "half anomalous": (rng.integers(0, 2, masks.shape, dtype=np.uint8), smooth),
    }


def measure(masks: np.ndarray, maps: np.ndarray, repeats: int) -> dict[str, float]:
    steps: dict[str, Callable[[], Any]] = {
        "sklearn_auroc_s": lambda: roc_auc_score(masks.ravel(), maps.ravel()),
        "np_sort_s": lambda: np.sort(maps, axis=None),
        "pixel_metrics_s": lambda: pixel_metrics(masks, maps),
    }
    best = dict.fromkeys(steps, np.inf)
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    tracemalloc.start()
    pixel_metrics(masks, maps)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    ours = best["pixel_metrics_s"]
    return {
        **best,
        "ratio": ours / best["sklearn_auroc_s"],
        "over_sort": ours / best["np_sort_s"],
        "peak_mib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = {
        name: measure(masks, maps, options.repeats)
        for name, (masks, maps) in cases(options.images, options.size).items()
    }
    if options.json:
        print(json.dumps({"images": options.images, "size": options.size, "cases": rows}, indent=2))
        return
    columns = list(next(iter(rows.values())))
    print(f"{'case':16}" + "".join(f"{column:>17}" for column in columns))
    for name, row in rows.items():
        print(f"{name:16}" + "".join(f"{row[column]:17.3f}" for column in columns))


if __name__ == "__main__":
    main()
