"""Predictions as answers: JSON-ready, with the names of predictions.jsonl, and maps in the form that was asked for."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.prediction import Prediction
from anomalyclip.serve.refusals import Refusal

_PREVIEW = 1024
"""Longest side of a preview in pixels."""

_GRID_PIXELS, _GRID_SIDE = 4_194_304, 2048
"""Pixels of a map that is sent as the model made it, and the longest side of what is sent in place of a larger one."""


def entry(
    name: str,
    index: int,
    *,
    time: float | None = None,
    prediction: Prediction | None = None,
    map: dict[str, Any] | None = None,
    preview: dict[str, Any] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """Return what is said of one image.

    Parameters
    ----------
    name : str
        Of the file that was sent.
    index : int
        Number of the image in its file, counted from 1.
    time : float, optional
        Seconds of a video's frame.
    prediction : Prediction, optional
        None: the image could not be used, and `error` says why.
    map, preview : dict, optional
        See `encoded_map` and `preview_of`.
    error : str, optional

    Examples
    --------
    >>> entry("a.png", 1, error="a.png: empty file")
    {'name': 'a.png', 'index': 1, 'time': None, 'pred_score': None, 'pred_label': None, 'threshold': None,
     'pixel_threshold': None, 'image_size': None, 'regions': [], 'map': None, 'preview': None,
     'error': 'a.png: empty file'}
    """
    if prediction is None:
        said: dict[str, Any] = dict.fromkeys(
            ("pred_score", "pred_label", "threshold", "pixel_threshold", "image_size")
        )
        said["regions"] = []
    else:
        said = prediction.to_dict()
        del said["image_path"]
    return {
        "name": name,
        "index": index,
        "time": time,
        **said,
        "map": map,
        "preview": preview,
        "error": error,
    }


def encoded_map(prediction: Prediction, form: str, longest: int | None) -> dict[str, Any] | None:
    """Return the map as it was asked for.

    Parameters
    ----------
    prediction : Prediction
    form : str
        ``none``; ``png``: 8-bit gray, value / 255 is the map's; ``npy``: float32; ``rle``: the mask as runs of COCO,
        column by column, the first of them normal.
    longest : int, optional
        Longest side. None: the image's size; 0: as the model made it, where regions are found. A map is never larger
        than the image.

    Returns
    -------
    dict or None
        ``format``, ``width``, ``height``, ``data``: base64, or for ``rle`` the lengths of the runs.

    Raises
    ------
    Refusal
        There is no mask, because there is no threshold.
    """
    if form == "none":
        return None
    size = _size_of(prediction, longest)
    about = {"format": form, "width": size[0], "height": size[1]}
    if form == "rle":
        mask = prediction.mask_at(size)
        if mask is None:
            raise Refusal(422, "map rle is the mask, which needs a threshold: send one as 'threshold'")
        return {**about, "data": runs(mask)}
    return {
        **about,
        "data": _base64(_png(prediction.map_at(size)) if form == "png" else _npy(prediction.map_at(size))),
    }


def map_bytes(prediction: Prediction, form: str, longest: int | None) -> int:
    """Return the bytes that a map takes in an answer at most, about.

    Examples
    --------
    >>> prediction = Prediction(pred_score=0.5, anomaly_map=np.zeros((8, 8), np.float32), image_size=(30, 20))
    >>> map_bytes(prediction, "npy", None), map_bytes(prediction, "png", 0), map_bytes(prediction, "none", None)
    (3200, 85, 0)
    """
    width, height = _size_of(prediction, longest)
    return width * height * {"none": 0, "png": 4, "npy": 16, "rle": 1}[form] // 3


def preview_of(image: Image.Image) -> dict[str, Any]:
    """Return a small JPEG of an image, for what a browser cannot show."""
    small = image.convert("RGB")
    small.thumbnail((_PREVIEW, _PREVIEW), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return {"format": "jpeg", "width": small.width, "height": small.height, "data": _base64(file.getvalue())}


def runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of a mask's runs, column by column, beginning with a run of normal pixels (COCO's).

    Examples
    --------
    >>> runs(np.array([[True, False], [True, True]]))
    [0, 2, 1, 1]
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths: list[int] = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *lengths] if flat[0] else lengths


def _size_of(prediction: Prediction, longest: int | None) -> tuple[int, int]:
    """Return the size of a map that is sent; the map of an image that was cut into tiles may be too large for that."""
    height, width = prediction.anomaly_map.shape
    if longest == 0 and width * height <= _GRID_PIXELS:
        return width, height
    return _within(prediction.image_size, _GRID_SIDE if longest == 0 else longest)


def _within(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """Return a size of the same shape with at most this longest side."""
    share = 1.0 if longest is None else min(1.0, longest / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _png(values: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.round(values * 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _npy(values: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values))
    return file.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
