"""The most informative images of a class: the clearest defects, the faintest defects and the highest normal images."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from anomalyclip.addresses import Address
from anomalyclip.data.tree import path_of
from anomalyclip.errors import AnomalyCLIPWarning, InputError, concerning
from anomalyclip.evaluation.maps import Scored, read_map
from anomalyclip.evaluation.results import Case
from anomalyclip.files import open_output, replacing, writing
from anomalyclip.images import read_mask
from anomalyclip.prediction import Prediction, Threshold
from anomalyclip.readers import open_image
from anomalyclip.reference_pictures import finding
from anomalyclip.visualize import heat_map, overlay

CLEAREST, FAINTEST, SUSPECT = "clearest defect", "faintest defect", "highest normal"
"""The anomalous images with the highest scores, those with the lowest, and the normal images with the highest."""

EACH = 2
"""Images of each kind per class."""

_SIDE = 240  # longer side of a picture, in pixels


def draw_cases(
    scored: Sequence[Scored], *, root: Path | Address, folder: Path, name: str, threshold: Threshold | None
) -> tuple[Case, ...]:
    """Draw the best and worst images of a class as image, truth, map and overlay.

    All maps of a class are drawn on one scale, from 0 (or the lowest value, if maps of another system go below 0) to
    the highest value in these images, so that classes with faint maps are visible too.

    Parameters
    ----------
    scored : sequence of Scored
        The images of the class.
    root : Path
        The data set's folder.
    folder : Path
        JPEG files are written to ``cases/`` in this folder.
    name : str
        Prefix of their names.
    threshold : Threshold, optional
        Regions above its pixel threshold are outlined.

    Returns
    -------
    tuple of Case
        With paths relative to `folder`.
    """
    chosen = choose(scored)
    if not chosen:
        return ()
    maps = [read_map(item.map_file) for _, item in chosen]
    low, high = (
        min(0.0, *(float(values.min()) for values in maps)),
        max(float(values.max()) for values in maps),
    )
    span = max(high - low, 1e-12)
    pixel = (
        None
        if threshold is None or threshold.pixel is None
        else min(max((threshold.pixel - low) / span, 0), 1)
    )
    cases = []
    for number, ((kind, item), values) in enumerate(zip(chosen, maps, strict=True)):
        scaled = ((values - low) / span).clip(0, 1).astype(np.float32)
        pictures: dict[str, str] = {}
        try:
            with concerning(item.sample.image, "cannot be drawn"):
                for panel, picture in _draw(item, scaled, root, pixel).items():
                    save_picture(picture, folder / (file := f"cases/{name}-{number}-{panel}.jpg"))
                    pictures[panel] = file
        except InputError as error:  # its score still counts
            warnings.warn(f"not drawn in the report: {error}", AnomalyCLIPWarning, stacklevel=2)
        reference = item.nearest.reference if item.nearest and "beside" in pictures else None
        cases.append(Case(kind, item.sample.image, item.score, pictures, (low, high), reference))
    return tuple(cases)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as JPEG, whole or not at all."""
    with writing(path), replacing(path) as temporary, open_output(temporary) as file:
        picture.save(file, "JPEG", quality=85)


def choose(scored: Sequence[Scored]) -> list[tuple[str, Scored]]:
    """Return the images to draw: anomalous images with the highest and the lowest scores (none twice), then normal."""
    rising = sorted(scored, key=lambda item: item.score)
    anomalous = [item for item in rising if item.sample.anomaly]
    normal = [item for item in rising if not item.sample.anomaly]
    half = (len(anomalous) + 1) // 2
    best = anomalous[::-1][: min(EACH, half)]
    worst = anomalous[: min(EACH, len(anomalous) - half)]
    return [
        *((CLEAREST, item) for item in best),
        *((FAINTEST, item) for item in worst),
        *((SUSPECT, item) for item in normal[::-1][:EACH]),
    ]


def _draw(
    item: Scored, scaled: np.ndarray, root: Path | Address, pixel: float | None
) -> dict[str, Image.Image]:
    shown = photograph(item, root)
    pictures = {"image": shown}
    if (of_truth := truth(item, root, shown.size)) is not None:
        pictures["truth"] = of_truth
    pictures["map"] = picture_of_map(scaled, shown.size)
    pictures["overlay"] = _overlay(shown, item.score, scaled, pixel)
    if (both := finding(shown, item.nearest, item.pictures)) is not None:
        pictures["beside"] = both
    return pictures


def photograph(item: Scored, root: Path | Address) -> Image.Image:
    """Return a small picture of an image."""
    image = open_image(path_of(root, item.sample.image), value_range=item.value_range).convert("RGB")
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return image


def picture_of_map(scaled: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return a map, (H, W) float32 within [0, 1], in colours."""
    return heat_map(np.asarray(Image.fromarray(scaled).resize(size, Image.Resampling.BILINEAR)).clip(0, 1))


def truth(item: Scored, root: Path | Address, size: tuple[int, int]) -> Image.Image | None:
    """Return the mask of an image; None where it has none that can be used."""
    sample = item.sample
    if not sample.has_mask:
        return None
    if sample.mask is None:
        return Image.new("L", size, 0)
    try:
        mask = read_mask(path_of(root, sample.mask))
    except InputError:  # already reported when the metrics needed the mask
        return None
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BILINEAR)


def _overlay(photograph: Image.Image, score: float, scaled: np.ndarray, pixel: float | None) -> Image.Image:
    height, width = scaled.shape
    if height != width:  # a prediction's map is square; the overlay restores the picture's proportions
        scaled = np.asarray(Image.fromarray(scaled).resize((max(height, width),) * 2)).clip(0, 1)
    prediction = Prediction(
        pred_score=min(max(score, 0.0), 1.0),
        anomaly_map=np.ascontiguousarray(scaled, dtype=np.float32),
        image_size=photograph.size,
        pixel_threshold=pixel,
    )
    return overlay(photograph, prediction)
