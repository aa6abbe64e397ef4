"""`Detector`: images in, predictions out. It decodes ahead of the model and knows nothing of PyTorch itself."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.images import as_image, squash
from anomalyclip.prediction import Prediction, Threshold
from anomalyclip.tiling import Tiling, score_tiles

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A path, a PIL image, or an H x W x 3 uint8 array."""

OnError = Callable[[ImageLike, InputError], None]


class Scorer(Protocol):
    """A model made ready: (B, S, S, 3) uint8 RGB to scores (B,) and maps (B, S, S), float32 within [0, 1]."""

    image_size: int

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what determines the scores besides weights and prompts, JSON-ready."""
        ...


class _Decoded:
    """An image as the model takes it, and what the prediction says of the original."""

    def __init__(self, source: ImageLike, image_size: int) -> None:
        image = as_image(source)
        self.path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        self.original_size = image.size
        self.pixels = squash(image, image_size)


class Detector:
    """Zero-shot anomaly detector.

    Parameters
    ----------
    scorer : Scorer
        The model; usually made by `from_pretrained`.
    threshold : Threshold, optional
        With one, predictions have a verdict, a mask and regions.

    Examples
    --------
    >>> detector = Detector.from_pretrained("micro", threshold=0.5)
    >>> prediction = detector.predict(np.full((64, 64, 3), 200, dtype=np.uint8))
    >>> prediction.anomaly_map.dtype, 0 <= prediction.pred_score <= 1
    (dtype('float32'), True)
    """

    def __init__(self, scorer: Scorer, *, threshold: Threshold | None = None) -> None:
        self.scorer = scorer
        self.threshold = threshold

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | os.PathLike[str] = "ViT-L-14-336",
        *,
        prompts: str | os.PathLike[str] | None = None,
        image_size: int | None = None,
        layers: Sequence[int] | None = None,
        dpam_layers: int | None = None,
        sigma: float = 4.0,
        threshold: float | Threshold | str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "fp32",
        compiled: bool = False,
    ) -> "Detector":
        """Load a backbone and prompts.

        Parameters
        ----------
        backbone : str or path
            A name (``ViT-L-14-336``, ``micro``, ...) or a file or folder in any published form of CLIP weights.
        prompts : str or path, optional
            ``mvtec``, ``visa`` (named by what they were trained on) or a checkpoint. None: the backbone's own.
        image_size : int, optional
            Side S in pixels to which images are squashed, a multiple of the patch size. None: the backbone's own, 518
            for ViT-L/14@336.
        layers : sequence of int, optional
            Blocks, counted from 1, whose patch features make the map. None: the last.
        dpam_layers : int, optional
            How many final blocks have the local path. None: 19 of 24, other depths in proportion.
        sigma : float
            Gaussian smoothing of the map in pixels at S x S.
        threshold : float, Threshold or path, optional
            One number for scores and pixels both, or a file that ``anomalyclip calibrate`` wrote.
        device : str
            ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        precision : {"fp32", "bf16", "fp16", "auto"}
            Of the image tower's matrix products.
        compiled : bool
            Whether to compile the image tower (`torch.compile`): slow to start, faster for many images.

        Raises
        ------
        AnomalyCLIPError
            Weights, prompts or an option cannot be used; the message says which, and what would do.
        """
        from anomalyclip.loading import load_clip, load_prompts_for
        from anomalyclip.scorer import TorchScorer, choose_device, choose_precision

        ready = as_threshold(threshold)
        choose_precision(precision, choose_device(device))  # before a gigabyte is fetched
        clip = load_clip(backbone)
        scorer = TorchScorer(
            clip,
            load_prompts_for(clip, backbone, prompts),
            image_size=image_size,
            layers=layers,
            dpam_layers=dpam_layers,
            sigma=sigma,
            device=device,
            precision=precision,
            compiled=compiled,
        )
        return cls(scorer, threshold=ready)

    @classmethod
    def from_exported(
        cls,
        path: str | os.PathLike[str],
        *,
        threshold: float | Threshold | str | os.PathLike[str] | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> "Detector":
        """Load a file that ``anomalyclip export`` wrote; PyTorch is neither needed nor imported.

        Parameters
        ----------
        path : path-like
            An ``.onnx`` file, or OpenVINO's ``.xml`` with its ``.bin`` beside it.
        threshold : float, Threshold or path, optional
            One number for scores and pixels both, or a threshold file. None: the file's own, if it has one.
        providers : sequence of str, optional
            ONNX Runtime's execution providers (cpu, cuda, tensorrt, openvino), first choice first, or one OpenVINO
            device. None: cpu.
        threads : int, optional
            Threads of the CPU. None: the runtime's own choice.

        Raises
        ------
        AnomalyCLIPError
            The file cannot be used, or a provider is not there.
        """
        from anomalyclip.deploy.runtime import ExportedScorer

        ready = as_threshold(threshold)
        scorer = ExportedScorer(path, providers=providers, threads=threads)
        return cls(scorer, threshold=scorer.card.limits if ready is None else ready)

    @overload
    def predict(self, images: ImageLike, *, tiling: Tiling | None = None) -> Prediction: ...  # type: ignore[overload-overlap] # a str is a sequence too

    @overload
    def predict(self, images: Sequence[ImageLike], *, tiling: Tiling | None = None) -> list[Prediction]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, tiling: Tiling | None = None
    ) -> Prediction | list[Prediction]:
        """Score one image, or a list of them one by one.

        Parameters
        ----------
        images : path, PIL image or (H, W, 3) or (H, W) uint8 array, or a list of these
        tiling : Tiling, optional
            How images larger than a tile are cut. None: every image is squashed whole.

        Returns
        -------
        Prediction or list of Prediction

        Raises
        ------
        InputError
            An image cannot be used.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, tiling=tiling))
        return next(self.stream([images], tiling=tiling))  # type: ignore[list-item]

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 1,
        workers: int | None = None,
        on_error: OnError | None = None,
        tiling: Tiling | None = None,
    ) -> Iterator[Prediction]:
        """Score any number of images in bounded memory, in their order.

        Threads decode ahead of the model, at most two batches.

        Parameters
        ----------
        images : iterable of path, PIL image or (H, W, 3) or (H, W) uint8 array
            May be endless; it is read only as far as it is needed.
        batch_size : int
            Images that go through the model at once; does not change the results.
        workers : int, optional
            Decoding threads. None: one for each core, at most four.
        on_error : callable, optional
            Called with an image that cannot be used and the error, and the rest goes on. None: the error is raised
            after the predictions of the images before it.
        tiling : Tiling, optional
            How images larger than a tile are cut; their maps have the images' own size, and a batch is of tiles. One
            image is held at a time, and none is decoded ahead.

        Yields
        ------
        Prediction
        """
        if batch_size < 1:
            raise AnomalyCLIPError(f"batch size {batch_size}: expected 1 or more")
        if tiling is not None:
            yield from self._stream_tiled(images, tiling, batch_size=batch_size, on_error=on_error)
            return
        decoded = self._decode_ahead(images, depth=2 * batch_size, workers=workers, on_error=on_error)
        for batch in _batches(decoded, batch_size):
            scores, maps = self.scorer(np.stack([item.pixels for item in batch]))
            for item, score, anomaly_map in zip(batch, scores, maps, strict=True):
                yield Prediction(
                    image_path=item.path,
                    pred_score=float(score),
                    anomaly_map=anomaly_map,
                    image_size=item.original_size,
                ).with_threshold(self.threshold)

    def _stream_tiled(
        self, images: Iterable[ImageLike], tiling: Tiling, *, batch_size: int, on_error: OnError | None
    ) -> Iterator[Prediction]:
        for source in images:
            try:
                image = as_image(source)
            except InputError as error:
                if on_error is None:
                    raise
                on_error(source, error)
                continue
            size, side = image.size, self.scorer.image_size
            if tiling.cuts(size):
                score, anomaly_map = score_tiles(
                    self.scorer, image, tiling, image_size=side, batch_size=batch_size
                )
            else:
                scores, maps = self.scorer(np.stack([squash(image, side)]))
                score, anomaly_map = float(scores[0]), maps[0]
            del image  # it may be a gigabyte, and whoever takes the prediction may open it again
            yield Prediction(
                image_path=os.fspath(source) if isinstance(source, str | os.PathLike) else None,
                pred_score=score,
                anomaly_map=anomaly_map,
                image_size=size,
            ).with_threshold(self.threshold)
            del anomaly_map

    def _decode_ahead(
        self, images: Iterable[ImageLike], *, depth: int, workers: int | None, on_error: OnError | None
    ) -> Iterator[_Decoded]:
        """Yield decoded images in order, each as soon as it is there: the source may be slower than the model."""
        pool = ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), thread_name_prefix="decode")
        waiting: SimpleQueue[tuple[ImageLike, Future[_Decoded]] | BaseException | None] = SimpleQueue()
        room, stopped = Semaphore(depth), Event()

        def read_source() -> None:
            end: BaseException | None = None
            try:
                for image in images:
                    room.acquire()
                    if stopped.is_set():
                        return
                    waiting.put((image, pool.submit(_Decoded, image, self.scorer.image_size)))
            except BaseException as error:
                end = error
            finally:
                waiting.put(end)

        # A daemon: a source that waits for input which never comes must not keep the program alive.
        Thread(target=read_source, name="decode source", daemon=True).start()
        try:
            while (entry := waiting.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                image, future = entry
                try:
                    item = future.result()
                except InputError as error:
                    if on_error is None:
                        raise
                    on_error(image, error)
                else:
                    yield item
                finally:
                    room.release()
        finally:
            stopped.set()
            room.release()
            pool.shutdown(cancel_futures=True)


def _batches(decoded: Iterator[_Decoded], size: int) -> Iterator[list[_Decoded]]:
    """Gather batches; where the source fails, what came before it is still scored."""
    batch: list[_Decoded] = []
    try:
        for item in decoded:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:  # of the source: the consumer's own never come here
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def as_threshold(value: float | Threshold | str | os.PathLike[str] | None) -> Threshold | None:
    """Return a number (for scores and pixels both), a threshold file or a `Threshold` as a `Threshold`."""
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
