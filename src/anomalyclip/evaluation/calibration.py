"""`calibrate`: a threshold from normal images alone or from labelled images, with confidence bounds."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.data.listing import load_samples
from anomalyclip.decoding import OnError
from anomalyclip.depth import Range
from anomalyclip.detector import VALUE_RANGE, Detector
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, InputError
from anomalyclip.evaluation.evaluator import Options, evaluate_set, pooled
from anomalyclip.evaluation.leaks import reference_test, references_here
from anomalyclip.evaluation.maps import DetectorSource
from anomalyclip.evaluation.thresholds import (
    NormalMaps,
    RateInterval,
    labelled_threshold,
    require_criterion,
    require_share,
    score_threshold,
)
from anomalyclip.inputs import find_images
from anomalyclip.loading import as_detector, in_pytorch
from anomalyclip.prediction import Threshold
from anomalyclip.progress import Track, silent
from anomalyclip.readers import Selection, Source
from anomalyclip.spec import DetectorSpec

Images = str | os.PathLike[str] | Iterable[Source]

_MASKS = {"ground_truth", "masks"}
"""Names of folders in which data sets keep masks."""

_OF_REFERENCES = "references, each compared with the others"

_LEFT_OUT = (
    "The images are the references, each compared only with the others. They also give the scale of the distances, so "
    "expect somewhat more false alarms on new images."
)

_NEARLY_ONE = 0.999


def calibrate(
    detector: Detector | DetectorSpec,
    images: Images | None = None,
    *,
    false_alarm_rate: float = 0.01,
    false_pixel_share: float = 0.001,
    batch_size: int = 1,
    on_error: OnError | None = None,
    track: Track = silent,
) -> Threshold:
    """Return a threshold from normal images alone, for a chosen false-alarm rate.

    Parameters
    ----------
    detector : Detector or DetectorSpec
        The threshold is valid only for this detector: another image size, precision or tiling gives other scores.
    images : path, sequence of paths, or iterable of Source
        Normal images: a file, folder (searched recursively) or pattern, or a list of these; or any iterable that
        `Detector.stream` accepts. References among them are left out, with a warning. None: the detector's references,
        each compared with the others alone.
    false_alarm_rate : float
        Share of normal images that may be classified as anomalous, above 0 and below 1.
    false_pixel_share : float
        Share of the pixels of normal images that may be marked, above 0 and below 1.
    batch_size : int
        Images per batch.
    on_error : callable, optional
        Called with each image that cannot be used, and the error; the others are used. None: the error is raised.
    track : Track
        Reports progress.

    Returns
    -------
    Threshold
        Its `info` holds the method and the number of images, what that number can guarantee ("says"), and the
        detector's identity and, if it has one, its spec.

    Raises
    ------
    AnomalyCLIPError
        No image can be used, all are references, a rate is out of range, no threshold can keep it, or there are masks
        among the images.

    Examples
    --------
    >>> from anomalyclip.demo import PICTURES
    >>> threshold = calibrate(DetectorSpec("micro"), PICTURES.glob("*_good.jpg"), false_alarm_rate=0.2)
    >>> 0 < threshold.score < 1, threshold.info["false_alarm_rate"]["count"]
    (True, 1)
    """
    require_share(false_alarm_rate, "false-alarm rate")
    require_share(false_pixel_share, "share of false pixels")
    detector = as_detector(detector)
    normals = NormalScores()
    if images is None:
        with track("Comparing references", None) as advance:
            for score, anomaly_map in _references(detector):
                normals.add(score, anomaly_map)
                advance()
        return normals.threshold(
            detector, false_alarm_rate, false_pixel_share, method=_OF_REFERENCES, caveat=_LEFT_OUT
        )
    sources = normal_images(images)
    count = len(sources) if isinstance(sources, Sequence) else None
    references = _References(detector)
    with track("Scoring", count) as advance:
        for prediction in detector.stream(
            sources, batch_size=batch_size, on_error=on_error, leave_out=references
        ):
            normals.add(prediction.pred_score, prediction.anomaly_map, prediction.value_range)
            advance()
    references.report(others=len(normals))
    return normals.threshold(detector, false_alarm_rate, false_pixel_share)


class _References:
    """Recognises the detector's references among images, which tell nothing: each is at distance 0 from itself."""

    def __init__(self, detector: Detector) -> None:
        self._is_one = reference_test(detector.scorer, detector.tiling)
        self._met: list[None] = []  # several threads append

    def __call__(self, image: Image.Image) -> bool:
        """Return whether an image is a reference, and count it."""
        if self._is_one is None or not self._is_one(image):
            return False
        self._met.append(None)
        return True

    def report(self, *, others: int) -> None:
        """Warn of the references that were left out, and refuse if there is no other image."""
        if not (count := len(self._met)):
            return
        if not others:
            raise AnomalyCLIPError(
                f"there are only references among the images (same pixels: {count}), at distance 0 from themselves: "
                "give other normal images, or none (the references alone also give a threshold)"
            )
        warnings.warn(
            "references among the images (same pixels) are at distance 0 from themselves, and say nothing about new "
            f"images: {count} left out, {others} others used",
            AnomalyCLIPWarning,
            stacklevel=3,
        )


class NormalScores:
    """Scores and maps of normal images as they come, and the threshold that they give.

    Examples
    --------
    >>> normals = NormalScores()
    >>> for score in np.linspace(0.1, 0.4, 20):
    ...     normals.add(score, np.full((4, 4), score, np.float32))
    >>> round(normals.threshold(DetectorSpec("micro").load(), 0.05, 0.05).score, 3)
    0.384
    """

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._maps = NormalMaps()
        self._value_range: Range | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._scores)

    def add(self, score: float, anomaly_map: NDArray[np.float32], value_range: Range | None = None) -> None:
        """Take the score and the map of a normal image, and the range that was assumed for it, if any."""
        self._scores.append(float(score))
        self._maps.add(anomaly_map)
        self._value_range = self._value_range or value_range

    def threshold(
        self,
        detector: Detector,
        false_alarm_rate: float,
        false_pixel_share: float,
        *,
        method: str = "normal images",
        caveat: str | None = None,
    ) -> Threshold:
        """Return the threshold; see `calibrate`.

        Parameters
        ----------
        detector : Detector
            What the scores are from.
        false_alarm_rate, false_pixel_share : float
            As for `calibrate`.
        method : str
            What the images are.
        caveat : str, optional
            What else the user should know.

        Raises
        ------
        AnomalyCLIPError
            As `calibrate`.
        """
        found = score_threshold(self._scores, false_alarm_rate)
        pixel = self._maps.threshold(false_pixel_share)
        if found.value > _NEARLY_ONE:
            warnings.warn(
                f"hardly any score will be above {found.value:.6f}: the model gives some of these normal images nearly "
                "the highest possible score. Check that they are normal and that the model suits them.",
                AnomalyCLIPWarning,
                stacklevel=3,
            )
        marked = (
            f"Pixels: {100 * pixel.share:.3g} % are marked, in {pixel.marked.count} of {pixel.marked.total} images "
            f"(true rate up to {100 * pixel.marked.high:.3g} %, 95 % confidence)."
        )
        info = {
            "method": method,
            "images": len(self._scores),
            "false_alarm_rate": {"wanted": false_alarm_rate, **_interval(found.alarms)},
            "false_pixel_share": {"wanted": false_pixel_share, "seen": pixel.share},
            "images_with_false_pixels": _interval(pixel.marked),
            "says": [found.explanation(), marked, *([] if caveat is None else [caveat])],
        }
        return Threshold(
            score=found.value, pixel=pixel.value, info=info | _made_with(detector, self._value_range)
        )


def _references(detector: Detector) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield scores and maps of the detector's references."""
    from anomalyclip.remembering import left_out_scores  # an exported detector needs no PyTorch

    yield from left_out_scores(in_pytorch(detector))


def calibrate_labelled(
    detector: Detector | DetectorSpec,
    data: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    criterion: str = "f1",
    batch_size: int = 1,
    on_error: OnError | None = None,
    track: Track = silent,
) -> Threshold:
    """Return the threshold that is best on a data set with normal and anomalous images.

    Parameters
    ----------
    detector, batch_size, on_error, track
        As for `calibrate`.
    data : path
        Folder of the data set; all its classes are used together.
    dataset : str, optional
        Its key in the catalogue. None: recognised.
    criterion : {"f1", "youden"}
        Largest F1, or largest sensitivity + specificity - 1.

    Returns
    -------
    Threshold
        See `calibrate`. It is the best one on these images; expect somewhat worse results on other images.

    Raises
    ------
    AnomalyCLIPError
        The data set cannot be listed, has only normal or only anomalous images, or has no usable image.
    """
    require_criterion(criterion)
    samples = pooled(load_samples(data, dataset))
    detector = as_detector(detector)
    with TemporaryDirectory(prefix="anomalyclip-") as folder, track("Scoring", len(samples)) as advance:
        source = DetectorSource(detector, samples.root, Path(folder) / "maps", batch_size=batch_size)
        options = Options(cases=False)
        result = evaluate_set(source, samples, folder, options=options, advance=advance).classes[0]
    if warning := references_here(
        detector.scorer, samples, tiling=detector.tiling, value_range=detector.value_range
    ):
        warnings.warn(warning, AnomalyCLIPWarning, stacklevel=2)
    for name, why in result.failed.items():
        if on_error is None:
            raise InputError(why)
        on_error(name, InputError(why))
    found = labelled_threshold(
        [image.anomaly for image in result.images], [image.score for image in result.images], criterion
    )
    says = (
        f"{criterion}: misses {_words(found.misses)} anomalous images, raises false alarms on {_words(found.alarms)} "
        "normal images. The threshold was chosen on these images: expect somewhat worse results on other images."
    )
    info = {
        "method": f"labelled images, {criterion}",
        "images": len(result.images),
        "data": str(data),
        "misses": _interval(found.misses),
        "false_alarms": _interval(found.alarms),
        "says": [says],
    }
    pixel = result.thresholds.get(f"pixel_{criterion}")
    return Threshold(score=found.value, pixel=pixel, info=info | _made_with(detector, source.value_range))


def normal_images(images: Images, *, selection: Selection | None = None) -> Iterable[Source]:
    """Return the images to calibrate on: the files that paths stand for; images in memory are returned unchanged.

    Raises
    ------
    AnomalyCLIPError
        There are masks among them, so the path is probably a whole data set.
    """
    if isinstance(images, str | os.PathLike):
        images = [images]
    if not isinstance(images, Sequence) or not all(isinstance(image, str | os.PathLike) for image in images):
        return images
    listed = list(find_images([os.fspath(image) for image in images], selection=selection))
    for image in listed:
        if not _MASKS.isdisjoint(part.casefold() for part in Path(image.name).parts[:-1]):
            raise AnomalyCLIPError(
                f"{image.path} is in a folder for masks, so there are probably defective images here too: give only "
                "folders of normal images (such as CLASS/train/good), or the whole data set as --labelled ROOT"
            )
    return [image.path for image in listed]


def _made_with(detector: Detector, value_range: Range | None) -> dict[str, Any]:
    """Return what made a threshold; it also has a scale that was only assumed, for predictions must use the same."""
    spec = {} if detector.spec is None else {"spec": detector.spec.located().to_dict()}
    scale = {} if value_range is None else {VALUE_RANGE: list(value_range)}
    return {"model": detector.describe().title, "identity": {**detector.identity(), **scale}, **spec}


def _interval(rate: RateInterval) -> dict[str, Any]:
    return {"count": rate.count, "of": rate.total, "low": rate.low, "high": rate.high, "confidence": 0.95}


def _words(rate: RateInterval) -> str:
    return f"{rate.count} of {rate.total} (true rate {100 * rate.low:.3g} to {100 * rate.high:.3g} %)"
