"""Results of an evaluation: metrics per class, their mean, and the files from which a stopped run is resumed."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json, replacing, writing

Metrics = dict[str, float | None]
"""By name (a key of `METRICS`), in [0, 1]; None if a metric does not apply."""

METRICS = {
    "image_auroc": ("image", "AUROC"),
    "image_ap": ("image", "AP"),
    "pixel_auroc": ("pixel", "AUROC"),
    "pixel_aupro": ("pixel", "AUPRO"),
    "image_f1_max": ("image", "F1-max"),
    "pixel_aupro_exact": ("pixel", "AUPRO exact"),
    "pixel_ap": ("pixel", "AP"),
    "pixel_f1_max": ("pixel", "F1-max"),
}
"""Level and name of every metric; the first four are the paper's, with AUPRO as published."""

Found = TypeVar("Found")

Writers = Mapping[str, tuple[str, Callable[[Found], str]]]
"""File name and content of each format of some results."""

PAPER = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")
EXTRA = tuple(name for name in METRICS if name not in PAPER)


@dataclass(frozen=True)
class ImageResult:
    """One image: its ground truth and its score.

    Parameters
    ----------
    image : str
        Path relative to the data set's root.
    defect : str
        Kind of defect, or name of the normal folder.
    anomaly : bool
        Whether the image is anomalous.
    score : float
        Image score.
    in_pixel_metrics : bool
        Whether the ground truth of its pixels is known.
    """

    image: str
    defect: str
    anomaly: bool
    score: float
    in_pixel_metrics: bool


@dataclass(frozen=True)
class Case:
    """Pictures of one of the best or worst images of a class.

    Parameters
    ----------
    kind : str
        "clearest defect", "faintest defect" or "highest normal".
    image : str
        Path relative to the data set's root.
    score : float
        Image score.
    pictures : dict of str to str
        By name ("image", "truth", "map", "overlay", and with references "beside": the strangest place, and the place of
        a reference that is most like it), paths relative to the data set's results.
    scale : tuple of float
        Map values of the darkest and the brightest colour.
    reference : str or None
        Name of that reference.
    """

    kind: str
    image: str
    score: float
    pictures: dict[str, str]
    scale: tuple[float, float] = (0.0, 1.0)
    reference: str | None = None


@dataclass(frozen=True)
class ClassResult:
    """Results of one class.

    Parameters
    ----------
    name : str
        The class.
    images : tuple of ImageResult
        Every image that was scored.
    failed : dict of str to str
        Images (and masks) that could not be used, and why; those in `missing` too.
    metrics : dict of str to float or None
        See `METRICS`.
    thresholds : dict of str to float or None
        The best thresholds on these images: "image_f1", "pixel_f1", "pixel_youden".
    curves : dict
        By name ("image_roc", "image_pr", "pixel_roc", "pixel_pr", "pixel_pro"): x and y values.
    cases : tuple of Case
        Best and worst images, if they were drawn.
    seconds : dict of str to float
        "encode" and "metrics".
    missing : tuple of str
        Images and masks that the data set lists and that are not there.
    """

    name: str
    images: tuple[ImageResult, ...]
    failed: dict[str, str]
    metrics: Metrics
    thresholds: dict[str, float | None]
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def normal(self) -> int:
        """Number of normal images."""
        return sum(not image.anomaly for image in self.images)

    @property
    def anomalous(self) -> int:
        """Number of anomalous images."""
        return sum(image.anomaly for image in self.images)

    @property
    def without_mask(self) -> int:
        """Number of images that are used for image-level metrics only, in a class that has masks."""
        known = sum(image.in_pixel_metrics for image in self.images if image.anomaly)
        return self.anomalous - known if known else 0

    def save(self, path: Path) -> None:
        """Write the results as JSON; the file is written completely or not at all."""
        with writing(path), replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "ClassResult":
        """Read what `save` wrote.

        Raises
        ------
        AnomalyCLIPError
            The file is damaged.
        """
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            content["images"] = tuple(ImageResult(**image) for image in content["images"])
            content["cases"] = tuple(Case(**case) for case in content["cases"])
            content["missing"] = tuple(content.get("missing", ()))
            result = cls(**content)
            result._check()
            return result
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnomalyCLIPError(
                f"{path}: damaged file ({error}); delete it, and --resume will evaluate this class again"
            ) from None

    def _check(self) -> None:
        """Raise TypeError for values that would make a report fail later."""
        for figures in (self.metrics, self.thresholds, self.seconds):
            for name, value in figures.items():
                if value is not None and not isinstance(value, int | float):
                    raise TypeError(f"{name} is {value!r}")


@dataclass(frozen=True)
class DatasetResult:
    """Results of one data set by one scorer.

    Parameters
    ----------
    key : str
        Name of the data set: its key in the catalogue, or its folder's name.
    root : str
        Its folder.
    classes : tuple of ClassResult
        In the order of the listing.
    scorer : str
        "model", or the name of a control.
    """

    key: str
    root: str
    classes: tuple[ClassResult, ...]
    scorer: str = "model"

    @property
    def mean(self) -> Metrics:
        """Mean of each metric over the classes to which it applies."""
        return mean_metrics(result.metrics for result in self.classes)

    @property
    def failed(self) -> dict[str, str]:
        """All files that could not be used, with their error messages."""
        return {name: why for result in self.classes for name, why in result.failed.items()}

    def seconds(self, what: str) -> float:
        """Return the time of "encode" or "metrics", summed over all classes."""
        return sum(result.seconds.get(what, 0.0) for result in self.classes)


def mean_metrics(several: Iterable[Mapping[str, float | None]]) -> Metrics:
    """Return the mean of each metric over the entries to which it applies; None if it applies to none.

    Examples
    --------
    >>> mean_metrics([{"image_auroc": 0.5}, {"image_auroc": 1.0}, {"image_auroc": None}])["image_auroc"]
    0.75
    """
    rows = list(several)
    mean: Metrics = {}
    for name in METRICS:
        values = [value for row in rows if (value := row.get(name)) is not None]
        mean[name] = math.fsum(values) / len(values) if values else None
    return mean


def number(value: float) -> float | None:
    """Return a metric as a value for JSON: None for NaN."""
    return None if math.isnan(value) else float(value)


def to_json(result: DatasetResult) -> dict[str, Any]:
    """Return the entry of a data set in results.json, without curves and images.

    Examples
    --------
    >>> to_json(DatasetResult("mine", "/data/mine", ()))["classes"]
    []
    """
    return {
        "dataset": result.key,
        "root": result.root,
        "scorer": result.scorer,
        "mean": result.mean,
        "classes": [
            {
                "class": entry.name,
                "normal": entry.normal,
                "anomalous": entry.anomalous,
                "without_mask": entry.without_mask,
                "missing": len(entry.missing),
                "metrics": entry.metrics,
                "best_thresholds": entry.thresholds,
                "failed": entry.failed,
                "seconds": entry.seconds,
            }
            for entry in result.classes
        ],
    }


def write_files(found: Found, folder: Path, formats: Iterable[str], writers: Writers[Found]) -> list[Path]:
    """Write results in each of these formats that `writers` has, and return the files.

    Raises
    ------
    AnomalyCLIPError
        A file cannot be written.
    """
    files = []
    for name, content in (writers[kind] for kind in formats if kind in writers):
        path = folder / name
        with writing(path), replacing(path) as temporary:
            temporary.write_text(content(found), encoding="utf-8", errors="backslashreplace")
        files.append(path)
    return files
