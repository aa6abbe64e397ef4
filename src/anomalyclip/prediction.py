"""The prediction for one image: score, map, and, with a threshold, verdict and regions."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.addresses import as_place, on_disk
from anomalyclip.depth import Range, require_range
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json, replacing, writing
from anomalyclip.nearest import NearestNormal

# float32 softmax and Gaussian filter may exceed 1 by a few units in the last place.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Threshold:
    """Thresholds: image scores and map values at or above them are anomalous.

    Parameters
    ----------
    score : float, optional
        Threshold of the image score, in [0, 1]; None: images get no verdict.
    pixel : float, optional
        Threshold of the anomaly map, in [0, 1]; None: there is no mask.
    info : mapping, optional
        JSON-ready information about the origin of the thresholds (calibration set, false-alarm rate, ...).

    Raises
    ------
    AnomalyCLIPError
        If a threshold is outside [0, 1].

    Examples
    --------
    >>> Threshold(score=0.6, pixel=0.4)
    Threshold(score=0.6, pixel=0.4, info={})
    """

    score: float | None = None
    pixel: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("score", self.score), ("pixel", self.pixel)):
            if value is not None and not _is_probability(value):
                raise AnomalyCLIPError(f"the {name} threshold is {value!r}; it must be a number from 0 to 1.")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Threshold":
        """Read a threshold file, as written by `to_file`.

        Raises
        ------
        AnomalyCLIPError
            If the file cannot be read or is not a threshold file.
        """
        try:
            with on_disk(as_place(path)) as file:
                content = parse_json(file.read_bytes())
        except OSError as error:
            raise AnomalyCLIPError(
                f"threshold {path}: expected a number from 0 to 1, such as 0.5, or a threshold file ({error.strerror})"
            ) from error
        except ValueError as error:
            raise AnomalyCLIPError(f"threshold file {path} is not valid JSON: {error}.") from error
        expected = 'expected an object like {"score": 0.6, "pixel": 0.4, "info": {}}'
        if not isinstance(content, dict) or not {"score", "pixel"} <= content.keys() <= {
            "score",
            "pixel",
            "info",
        }:
            raise AnomalyCLIPError(f"{path} is not a threshold file: {expected}.")
        if not isinstance(content.get("info", {}), dict):
            raise AnomalyCLIPError(f"{path} is not a threshold file: info is not an object; {expected}.")
        try:
            return cls(**content)
        except AnomalyCLIPError as error:
            raise AnomalyCLIPError(f"threshold file {path}: {error}") from error

    @property
    def origin(self) -> str:
        """How the thresholds were made, as far as `info` tells: a few words, or nothing.

        Examples
        --------
        >>> Threshold(score=0.6, info={"method": "normal images", "images": 20, "model": "micro"}).origin
        'calibrated on 20 normal images, with micro'
        >>> Threshold(score=0.6).origin
        ''
        """
        images, model = self.info.get("images"), self.info.get("model")
        what = self.info.get("method") or self.info.get("calibrated_on")
        if not isinstance(what, str):
            return ""
        number = f"{images} " if isinstance(images, int) else ""
        return f"calibrated on {number}{what}{f', with {model}' if isinstance(model, str) else ''}"

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the thresholds as a small JSON file; the file is written completely or not at all.

        Raises
        ------
        AnomalyCLIPError
            If the file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "threshold.json"
        >>> Threshold(score=0.6, info={"images": 20}).to_file(path)
        >>> Threshold.from_file(path)
        Threshold(score=0.6, pixel=None, info={'images': 20})
        """
        content = {"score": self.score, "pixel": self.pixel, "info": dict(self.info)}
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        place = as_place(path)
        with writing(place), replacing(place) as temporary:
            temporary.write_text(text, encoding="utf-8")


def as_threshold(value: "float | Threshold | str | os.PathLike[str] | None") -> Threshold | None:
    """Return a number (used for scores and pixels), a threshold file or a `Threshold` as a `Threshold`."""
    if value is None or isinstance(value, Threshold):
        return value
    if isinstance(value, int | float):
        return Threshold(score=float(value), pixel=float(value))
    text = os.fspath(value)
    try:
        number = float(text)
    except ValueError:
        return Threshold.from_file(Path(text))
    return Threshold(score=number, pixel=number)


@dataclass(frozen=True)
class Region:
    """A connected anomalous area, in pixels of the original image.

    Parameters
    ----------
    box : tuple of int
        (x0, y0, x1, y1): the smallest rectangle around it; x1 and y1 are one past the last pixel.
    area : int
        Number of pixels, at least 1.
    peak_score : float
        Largest value of the anomaly map in the region, in [0, 1].
    peak_position : tuple of int
        (x, y) of that value.
    """

    box: tuple[int, int, int, int]
    area: int
    peak_score: float
    peak_position: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the region as JSON-ready values, in a fixed order."""
        return {
            "box": list(self.box),
            "area": self.area,
            "peak_score": self.peak_score,
            "peak_position": list(self.peak_position),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """Score and anomaly map of one image.

    Parameters
    ----------
    pred_score : float
        How anomalous the image looks, in [0, 1]: a ranking, not a calibrated probability.
    anomaly_map : ndarray of float32, shape (S, S) or (height, width)
        How anomalous each pixel of the model's square input looks, in [0, 1]; for an image that was cut into tiles,
        each pixel of the image itself. Read-only.
    image_size : tuple of int
        (width, height) of the original image, upright (with its EXIF orientation applied).
    image_path : str or path, optional
        Path (or id) of the image; kept as a string. None for an image in memory.
    threshold : float, optional
        The image is anomalous if its score is at or above this value. See `with_threshold`.
    pixel_threshold : float, optional
        A pixel is anomalous if its map value is at or above this value.
    value_range : (float, float), optional
        For an image of more than 8 bits: the values that the model saw as black and white. None: an image of 8 bits, or
        as its file says.
    time : float, optional
        For a frame of a video: seconds from its start, by the time stamp of the stream.
    nearest : NearestNormal, optional
        With references: the patch that is least like them, and what it was compared with.

    Raises
    ------
    AnomalyCLIPError
        If the map is not two-dimensional and float32, has values outside [0, 1] or NaN, or the score, the size or a
        threshold is invalid.

    Examples
    --------
    >>> anomaly_map = np.zeros((4, 4), np.float32)
    >>> anomaly_map[0, 1:3] = 0.75
    >>> prediction = Prediction(pred_score=0.8, anomaly_map=anomaly_map, image_size=(40, 20))
    >>> print(prediction.pred_label, prediction.pred_mask)
    None None
    >>> prediction = prediction.with_threshold(0.5)
    >>> prediction.pred_label
    True
    >>> prediction.regions
    (Region(box=(10, 0, 30, 5), area=100, peak_score=0.75, peak_position=(15, 2)),)
    """

    pred_score: float
    anomaly_map: NDArray[np.float32]
    image_size: tuple[int, int]
    image_path: str | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    value_range: Range | None = None
    time: float | None = None
    nearest: NearestNormal | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_range", require_range(self.value_range))
        Threshold(score=self.threshold, pixel=self.pixel_threshold)
        if not _is_probability(self.pred_score):
            raise AnomalyCLIPError(f"pred_score is {self.pred_score!r}, not a number within [0, 1]")
        width, height = self.image_size
        if width < 1 or height < 1:
            raise AnomalyCLIPError(f"image_size is {self.image_size}, not (width, height) in pixels")
        if self.image_path is not None:
            object.__setattr__(self, "image_path", os.fspath(self.image_path))
        object.__setattr__(self, "pred_score", float(self.pred_score))
        object.__setattr__(self, "image_size", (int(width), int(height)))
        object.__setattr__(self, "anomaly_map", _checked_map(self.anomaly_map))

    @property
    def pred_label(self) -> bool | None:
        """Whether the image is anomalous; None without a threshold."""
        return None if self.threshold is None else self.pred_score >= self.threshold

    @cached_property
    def pred_mask(self) -> NDArray[np.bool_] | None:
        """The anomalous pixels, as a bool array with the map's shape; None without a pixel threshold."""
        return None if self.pixel_threshold is None else self.anomaly_map >= self.pixel_threshold

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The 8-connected regions of `pred_mask`, highest peak first; empty without a pixel threshold.

        They are found on the map and scaled to the original image: boxes are rounded outwards, areas
        to the nearest pixel.
        """
        return (
            () if self.pred_mask is None else _find_regions(self.anomaly_map, self.pred_mask, self.image_size)
        )

    def with_threshold(self, threshold: Threshold | float | None) -> "Prediction":
        """Return the same prediction with another threshold.

        Parameters
        ----------
        threshold : Threshold, float or None
            A plain number is used for image score and map (both are in [0, 1], but one number is seldom good for
            both); None removes the thresholds.

        Raises
        ------
        AnomalyCLIPError
            If a threshold is outside [0, 1].
        """
        if not isinstance(threshold, Threshold):
            threshold = Threshold(score=threshold, pixel=threshold)
        return replace(self, threshold=threshold.score, pixel_threshold=threshold.pixel)

    def map_at(self, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return the anomaly map at another size, with bilinear interpolation (antialiased when it shrinks).

        Parameters
        ----------
        size : tuple of int, optional
            (width, height); default: the original image's.

        Returns
        -------
        ndarray of float32, shape (height, width)
            Values in [0, 1].
        """
        size = size or self.image_size
        if size == self.anomaly_map.shape[::-1]:
            return self.anomaly_map
        return np.asarray(resized(self.anomaly_map, size)).clip(0, 1)

    def mask_at(self, size: tuple[int, int] | None = None) -> NDArray[np.bool_] | None:
        """Return the mask at another size: where `map_at` reaches the pixel threshold; None without a threshold.

        Parameters
        ----------
        size : tuple of int, optional
            (width, height); default: the original image's.

        Returns
        -------
        ndarray of bool, shape (height, width), or None
        """
        return None if self.pixel_threshold is None else self.map_at(size) >= self.pixel_threshold

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the map and the mask as JSON-ready values, in a fixed order.

        `time`, `value_range` and `nearest` are there only if they are not None.

        Examples
        --------
        >>> Prediction(pred_score=0.25, anomaly_map=np.zeros((2, 2), np.float32), image_size=(8, 6)).to_dict()
        {'image_path': None, 'pred_score': 0.25, 'pred_label': None, 'threshold': None,
         'pixel_threshold': None, 'image_size': [8, 6], 'regions': []}
        """
        return {
            "image_path": self.image_path,
            **({} if self.time is None else {"time": self.time}),
            "pred_score": self.pred_score,
            "pred_label": self.pred_label,
            "threshold": self.threshold,
            "pixel_threshold": self.pixel_threshold,
            "image_size": list(self.image_size),
            **({} if self.value_range is None else {"value_range": list(self.value_range)}),
            **({} if self.nearest is None else {"nearest": self.nearest.to_dict()}),
            "regions": [region.to_dict() for region in self.regions],
        }


def _is_probability(value: object) -> bool:
    # In Python a bool is an int, but a bool as a threshold is a mistake.
    return (
        isinstance(value, (int, float, np.floating))
        and not isinstance(value, bool)
        and bool(0 <= value <= 1)  # not as a float: an int may be too large for one
    )


def _checked_map(anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a read-only view (a copy if rounding left [0, 1]), or raise AnomalyCLIPError."""
    if anomaly_map.dtype != np.float32 or anomaly_map.ndim != 2 or anomaly_map.size == 0:
        raise AnomalyCLIPError(
            f"anomaly_map is {anomaly_map.dtype} {anomaly_map.shape}, not float32 (height, width)"
        )
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise AnomalyCLIPError(f"anomaly_map has values from {low} to {high}, not within [0, 1]")
    checked = anomaly_map.view() if low >= 0 and high <= 1 else anomaly_map.clip(0, 1)
    checked.flags.writeable = False
    return checked


def _find_regions(
    anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_], image_size: tuple[int, int]
) -> tuple[Region, ...]:
    from scipy import ndimage  # imported here because it takes longer than all other imports together

    # Integers throughout: 518 * (384 / 518) is not 384 in floating point.
    (width, height), (mask_height, mask_width) = image_size, mask.shape
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    regions = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == label
        values = np.where(inside, anomaly_map[rows, columns], -1)
        row, column = np.unravel_index(values.argmax(), values.shape)
        box = (
            columns.start * width // mask_width,
            rows.start * height // mask_height,
            -(-columns.stop * width // mask_width),
            -(-rows.stop * height // mask_height),
        )
        area = round(np.count_nonzero(inside) * width * height / mask.size)
        peak_x = (2 * (columns.start + int(column)) + 1) * width // (2 * mask_width)
        peak_y = (2 * (rows.start + int(row)) + 1) * height // (2 * mask_height)
        regions.append(Region(box, max(1, area), float(values[row, column]), (peak_x, peak_y)))
    return tuple(sorted(regions, key=lambda region: (-region.peak_score, -region.area, region.box)))


def resized(anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """Return a map (H, W) at another size, as a picture of floats; rounding may take values just beyond [0, 1]."""
    return Image.fromarray(anomaly_map).resize(size, Image.Resampling.BILINEAR)
