"""`Detector`: images in, predictions out. It decodes ahead of the model and does not depend on PyTorch."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.batches import Batches
from anomalyclip.decoding import OnError, name_of
from anomalyclip.depth import Range, Scale, require_range
from anomalyclip.depth.in_scale import Shown, decode_in_scale
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.framing import alike, framing_of
from anomalyclip.identity import differences
from anomalyclip.nearest import NearestNormal, noting
from anomalyclip.prediction import Prediction, Threshold
from anomalyclip.readers import Source
from anomalyclip.scorer import Description, Scorer
from anomalyclip.spec import DEFAULT_BACKBONE, DetectorSpec
from anomalyclip.tiling import Tiling, score_tiles

VALUE_RANGE = "value_range"
"""Name in an identity of the scale of images of more than 8 bits."""

_LEARNED_WITH = ("image_size", "layers", "dpam_layers", "local_attention")
"""Settings that prompts are learned with, if their file records them."""


_USUAL = {"local_attention": "v"}
"""Settings that an identity names only if they are not these."""


@dataclass(frozen=True)
class Prepared:
    """The model's input for an image (or the image itself, if it will be cut), and the original's source and size."""

    source: Source
    id: str | None
    size: tuple[int, int]
    pixels: NDArray[np.uint8] | None = None
    uncut: Image.Image | None = None
    value_range: Range | None = None
    time: float | None = None


class _LeftOut:
    """In place of an image that is not to be scored."""


class Detector:
    """Scores images and locates their anomalies.

    Parameters
    ----------
    scorer : Scorer
        The model; usually made by `from_pretrained` or `DetectorSpec.load`.
    threshold : Threshold, optional
        With a threshold, predictions have a verdict, a mask and regions.
    tiling : Tiling, optional
        How to cut images that are larger than a tile; their maps have the size of the image. None: images are squashed
        as a whole.
    spec : DetectorSpec, optional
        The spec that the scorer was made from, if any; it is recorded in results and threshold files.
    value_range : (float, float), optional
        The values that become black and white in images of more than 8 bits. None: that of the references or of the
        threshold, if they were made with one; otherwise each file's own, or one for all images of a run, assumed from
        the first.

    Raises
    ------
    AnomalyCLIPError
        The scorer has no identity.

    Examples
    --------
    >>> detector = Detector.from_pretrained("micro", threshold=0.5)
    >>> prediction = detector.predict(np.full((64, 64, 3), 200, dtype=np.uint8))
    >>> prediction.anomaly_map.dtype, 0 <= prediction.pred_score <= 1
    (dtype('float32'), True)
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        threshold: Threshold | None = None,
        tiling: Tiling | None = None,
        spec: DetectorSpec | None = None,
        value_range: Range | None = None,
    ) -> None:
        for method in ("identity", "describe"):
            if not callable(getattr(scorer, method, None)):
                raise AnomalyCLIPError(
                    f"{type(scorer).__name__} has no {method}(), which is needed to tell its thresholds and runs from "
                    "those of other scorers (see anomalyclip.scorer.Scorer)"
                )
        self.scorer, self.threshold, self.tiling, self.spec = scorer, threshold, tiling, spec
        self.value_range = require_range(value_range) or _stored_range(scorer, threshold)

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | os.PathLike[str] = DEFAULT_BACKBONE,
        *,
        threshold: float | Threshold | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> "Detector":
        """Load a detector with this backbone: short for ``DetectorSpec(backbone, **options).load(...)``.

        Parameters
        ----------
        backbone : str or path
            A name (``ViT-L-14-336``, ``micro``, ...) or a file or folder in any published form of CLIP weights.
        threshold : float, Threshold or path, optional
            One number for scores and pixels, or a file written by ``anomalyclip calibrate``.
        **options
            The fields of `DetectorSpec`: prompts, image_size, layers, dpam_layers, sigma, image_score, tile, overlap,
            device, precision, compiled, method, value_range, range_from.

        Raises
        ------
        AnomalyCLIPError
            Weights, prompts or an option cannot be used; the message says which one and what to do.
        """
        return DetectorSpec.from_dict({"backbone": backbone, **options}).load(threshold=threshold)

    @classmethod
    def from_exported(
        cls,
        path: str | os.PathLike[str],
        *,
        threshold: float | Threshold | str | os.PathLike[str] | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        tile: int | None = None,
    ) -> "Detector":
        """Load a file written by ``anomalyclip export``; PyTorch is neither needed nor imported.

        Parameters
        ----------
        path : path-like
            An ``.onnx`` file, or OpenVINO's ``.xml`` with its ``.bin`` next to it.
        threshold : float, Threshold or path, optional
            One number for scores and pixels, or a threshold file. None: the exported file's own, if it has one.
        providers : sequence of str, optional
            ONNX Runtime's execution providers (cpu, cuda, tensorrt, openvino), first choice first, or one OpenVINO
            device. None: cpu.
        threads : int, optional
            CPU threads. None: the runtime's default.
        tile : int, optional
            Side in pixels of the tiles into which larger images are cut. None: the file's own setting.

        Raises
        ------
        AnomalyCLIPError
            The file cannot be used, or a provider is not available.
        """
        spec = DetectorSpec(model=os.fspath(path), provider=providers, threads=threads, tile=tile)  # type: ignore[arg-type]
        return spec.load(threshold=threshold)

    def of_class(self, name: str) -> "Detector":
        """Return the detector of a class: itself, unless its method puts the class's name into sentences.

        Raises
        ------
        AnomalyCLIPError
            The method cannot name it.
        """
        of_class = getattr(self.scorer, "of_class", None)
        if of_class is None:
            return self
        return Detector(
            of_class(name),
            threshold=self.threshold,
            tiling=self.tiling,
            spec=self.spec,
            value_range=self.value_range,
        )

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the scores, JSON-ready: the scorer's identity, tiles, and the value range."""
        tiles = {} if self.tiling is None else {"tile": self.tiling.size, "overlap": self.tiling.overlap}
        scale = {} if self.value_range is None else {VALUE_RANGE: list(self.value_range)}
        return {**self.scorer.identity(), **tiles, **scale}

    @property
    def has_own_threshold(self) -> bool:
        """Whether the threshold is the one in the exported file."""
        card = getattr(self.scorer, "card", None)
        return card is not None and self.threshold is not None and self.threshold == card.limits

    def describe(self) -> Description:
        """Return the description of the scorer for reports."""
        return self.scorer.describe()

    def remarks(self) -> list[str]:
        """Return warnings for the user if the prompts or the threshold were made with other settings."""
        found = []
        training, now = self.describe().training, {}
        made = {name: training[name] for name in _LEARNED_WITH if name in training}
        if made:
            now = {name: _text(self.identity().get(name, _USUAL.get(name))) for name in made}
        if differ := differences(made, now):
            what = "the trained part was" if "method" in training else "the prompts were"
            found.append(f"{what} learned with other settings ({'; '.join(differ)})")
        info = {} if self.threshold is None else self.threshold.info
        if isinstance(info.get("identity"), dict):
            if differ := differences(info["identity"], self.identity()):
                found.append(
                    f"the threshold was made with other settings ({'; '.join(differ)}): calibrate it again"
                )
        elif "scoring" in info:
            found.append(
                "the threshold was made by an earlier version and does not record its model: calibrate it again"
            )
        return found

    def observations(self) -> list[str]:
        """Return warnings about the images scored since the last call, such as another product's.

        Every run asks at its start and at its end, so that it is warned of its own images alone.
        """
        remarks = getattr(self.scorer, "remarks", None)
        return [] if remarks is None else list(remarks())

    def reference_pictures(self) -> tuple[bytes, ...]:
        """Return small JPEG pictures of the references, by `NearestNormal.number`; of the first ones, or none."""
        pictures = getattr(self.scorer, "reference_pictures", None)
        return () if pictures is None else pictures()

    @overload
    def predict(self, images: Source, *, batch_size: int = 8) -> Prediction: ...  # type: ignore[overload-overlap] # a str is a sequence too

    @overload
    def predict(self, images: Sequence[Source], *, batch_size: int = 8) -> list[Prediction]: ...

    def predict(
        self, images: Source | Sequence[Source], *, batch_size: int = 8
    ) -> Prediction | list[Prediction]:
        """Score one image, or a list of images in batches. For many images, `stream` is faster and needs less memory.

        Parameters
        ----------
        images : path, bytes, binary file, PIL image or uint8 array, or a list or tuple of these
            Bytes and files hold an encoded image; an array is RGB (H, W, 3) or gray (H, W).
        batch_size : int
            Images per batch; does not change the results.

        Returns
        -------
        Prediction or list of Prediction
            A list if `images` is a list or tuple.

        Raises
        ------
        InputError
            An image cannot be used, or a single source holds several images.
        """
        many = isinstance(images, list | tuple)
        sources: Sequence[Source] = images if many else [images]  # type: ignore[assignment,list-item]
        prepared = decode_in_scale(sources, self.prepare, self.scale())
        predictions = list(self.score(prepared, batch_size=batch_size))
        if many:
            return predictions
        if len(predictions) != 1:
            raise InputError(
                f"{images!r}: holds {len(predictions)} images; pass a list, predict([...]), to score all of them"
            )
        return predictions[0]

    def stream(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 1,
        workers: int | None = None,
        on_error: OnError | None = None,
        skip: Callable[[str], bool] | None = None,
        scale: Scale | None = None,
        leave_out: Callable[[Image.Image], bool] = lambda image: False,
    ) -> Iterator[Prediction]:
        """Score any number of images in order, in bounded memory.

        Threads decode at most two batches ahead of the model. With tiling, batches consist of tiles: one image is in
        memory at a time, and none is decoded ahead.

        Parameters
        ----------
        images : iterable of path, bytes, binary file, PIL image or uint8 array
            May be endless; it is read only as far as it is needed.
        batch_size : int
            Images (or tiles) per batch; does not change the results.
        workers : int, optional
            Decoding threads. None: one per core, at most four.
        on_error : callable, optional
            Called with each image that cannot be used, and the error; the others continue. None: the error is raised
            after the predictions of the images before it.
        skip : callable, optional
            Called with the id of each decoded image that has one (`anomalyclip.readers.Frame`); if it returns true,
            the image is skipped.
        scale : Scale, optional
            Of a run that these images are a part of (`scale`). None: they are a run.
        leave_out : callable
            Called with each decoded image, in any thread; if it returns true, the image is not scored.

        Yields
        ------
        Prediction
        """

        def prepare(shown: Shown) -> Prepared | _LeftOut:
            return _LeftOut() if leave_out(shown.image) else self.prepare(shown)

        decoded = decode_in_scale(
            images,
            prepare,
            scale or self.scale(),
            depth=2 * max(batch_size, 1) if self.tiling is None else None,
            workers=workers,
            on_error=on_error,
            skip=skip,
        )
        # `filter` holds no image while the next one is decoded
        prepared = filter(lambda item: isinstance(item, Prepared), decoded)
        yield from self.score(cast(Iterator[Prepared], prepared), batch_size=batch_size, on_error=on_error)

    def scale(self, *, assumed: Range | None = None, strict: bool = False) -> Scale:
        """Return the scale for the images of a run, for several calls of `stream`.

        Parameters
        ----------
        assumed : (float, float), optional
            What an earlier part of the run assumed (`Prediction.value_range`).
        strict : bool
            Refuse images whose range would have to be assumed.
        """
        return Scale(self.value_range, assumed=assumed, strict=strict)

    def prepare(self, shown: Shown) -> Prepared:
        """Return an image as `score` takes it: squashed, or whole if it will be cut. Any thread may call this."""
        image = shown.image
        prepared = Prepared(
            shown.source, shown.id, image.size, value_range=shown.value_range, time=shown.time
        )
        if self.tiling is not None and self.tiling.cuts(image.size):
            return replace(prepared, uncut=image)
        pixels = framing_of(self.scorer)(image, name=name_of(shown.source, shown.id))
        return replace(prepared, pixels=pixels)

    def score(
        self, prepared: Iterable[Prepared], *, batch_size: int, on_error: OnError | None = None
    ) -> Iterator[Prediction]:
        """Yield the predictions of prepared images in order; `stream` also reads and decodes them.

        Parameters
        ----------
        prepared : iterable of Prepared
            From `prepare`.
        batch_size, on_error
            As for `stream`.
        """
        score: Callable[[list[Prepared]], list[Prediction]] = self._score_batch
        at_once = batch_size
        if self.tiling is not None and batch_size >= 1:  # a batch is of tiles
            score = partial(self._score_tiled, tiling=self.tiling, batch_size=batch_size)
            at_once = 1
        yield from Batches(score, self._score_gray, at_once, on_error).of(iter(prepared))

    def _score_batch(self, batch: list[Prepared]) -> list[Prediction]:
        found: dict[int, Prediction] = {}
        for group in alike([item.pixels.shape for item in batch if item.pixels is not None]):
            items = [batch[index] for index in group]
            with noting() as noted:
                scores, maps = self.scorer(
                    np.stack([item.pixels for item in items if item.pixels is not None])
                )
            nearest: Sequence[NearestNormal | None] = noted or [None] * len(group)
            for index, *one in zip(group, items, scores, maps, nearest, strict=True):
                item, score, anomaly_map, place = one
                found[index] = self._prediction(item, float(score), anomaly_map, place)
        return [found[index] for index in range(len(batch))]

    def _score_tiled(self, batch: list[Prepared], *, tiling: Tiling, batch_size: int) -> list[Prediction]:
        (item,) = batch
        if item.uncut is None:
            return self._score_batch(batch)
        score, anomaly_map = score_tiles(
            self.scorer, item.uncut, tiling, framing=framing_of(self.scorer), batch_size=batch_size
        )
        return [self._prediction(item, score, anomaly_map)]

    def _score_gray(self) -> None:
        """Score a plain gray image, which nothing is wrong with."""
        rows, columns = framing_of(self.scorer).blank
        gray = np.full((rows, columns, 3), 128, np.uint8)
        self._score_batch([Prepared(gray, None, (columns, rows), gray)])

    def _prediction(
        self,
        item: Prepared,
        score: float,
        anomaly_map: NDArray[np.float32],
        nearest: NearestNormal | None = None,
    ) -> Prediction:
        return Prediction(
            image_path=item.id,
            pred_score=score,
            anomaly_map=anomaly_map,
            image_size=item.size,
            value_range=item.value_range,
            time=item.time,
            nearest=nearest,
        ).with_threshold(self.threshold)


def _stored_range(scorer: Scorer, threshold: Threshold | None) -> Range | None:
    """Return the range that references were remembered with, or that a threshold was made with."""
    memory = scorer.identity().get("memory")
    made_with = None if threshold is None else threshold.info.get("identity")
    for stored in (memory, made_with):
        if isinstance(stored, dict) and (value_range := require_range(stored.get(VALUE_RANGE))):
            return value_range
    return None


def _text(value: object) -> str:
    """Return a setting as the text that prompt files record."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
