"""Sources of an evaluation's scores and maps: a detector, whose maps are stored on disk, or a folder of maps.

Maps are kept as ``.npy`` files until their class is evaluated, so that memory does not grow with their number and a
stopped run resumes at the image where it stopped.
"""

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomalyclip.addresses import Address, require_here
from anomalyclip.data.meta import Sample
from anomalyclip.data.tree import path_of
from anomalyclip.depth import Range
from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.files import parse_json, require_regular
from anomalyclip.nearest import NearestNormal
from anomalyclip.prediction import Prediction
from anomalyclip.readers import locate
from anomalyclip.scorer import Scorer
from anomalyclip.writers import PredictionWriter, safe_name, without_ending


@dataclass(frozen=True)
class Scored:
    """A sample, its score, and the file with its map; what it was compared with, and pictures of the references."""

    sample: Sample
    score: float
    map_file: Path
    value_range: Range | None = None
    nearest: NearestNormal | None = None
    pictures: Sequence[bytes] = ()


class Source(Protocol):
    """Provides scores and maps, one class at a time."""

    def of(
        self, samples: Sequence[Sample], failed: dict[str, str], advance: Callable[[], None]
    ) -> list[Scored]:
        """Return the samples that have a score; add the others to `failed`, with the reason."""
        ...

    def release(self, scored: Sequence[Scored]) -> None:
        """Release maps that are no longer needed."""
        ...

    def close(self, *, complete: bool) -> None:
        """Release everything else. Files that are needed to resume a run are deleted only if it is complete."""
        ...


class Store:
    """Results of images, kept until their class is evaluated, so that a stopped run continues at the same image.

    Parameters
    ----------
    folder : path
        Where predictions.jsonl and the maps are kept.
    maps : bool
        Whether maps are kept, or only scores.
    keep : bool
        Leave all of it there when it is done.
    resume : bool
        Go on after what is there.

    Attributes
    ----------
    value_range : (float, float) or None
        The scale of images of more than 8 bits, once it is known.
    """

    def __init__(self, folder: Path, *, maps: bool = True, keep: bool = False, resume: bool = False) -> None:
        self._folder, self._maps, self._keep = folder, maps, keep
        save = ["map"] if maps else []
        self._writer = PredictionWriter(folder, save=save, resume=resume, overwrite=not resume)
        self._files: dict[str, Path] = {}
        self._scores: dict[str, float] = {}
        self._nearest: dict[str, NearestNormal] = {}
        self.value_range = self._writer.value_range
        for path, record in _records(folder):
            if path is not None:
                self._learn(path, record)

    def _learn(self, path: str, record: Mapping[str, Any]) -> None:
        self._scores[path] = float(record["pred_score"])
        if (nearest := NearestNormal.of(record)) is not None:
            self._nearest[path] = nearest
        if self._maps:
            self._files[path] = self._folder / record["files"]["map"]

    def has(self, path: str) -> bool:
        """Tell whether an image is there."""
        return path in self._scores and (not self._maps or self._files[path].is_file())

    def add(self, prediction: Prediction, name: str) -> None:
        """Keep the result of an image."""
        self.value_range = self.value_range or prediction.value_range
        self._learn(str(prediction.image_path), self._writer.write(prediction, name=name))

    def scored(self, path: str, sample: Sample, *, maps: "Store | None" = None) -> Scored:
        """Return the result of an image; its map may be in another store."""
        map_file = (maps or self)._files[path]
        return Scored(sample, self._scores[path], map_file, self.value_range, self._nearest.get(path))

    def release(self, scored: Sequence[Scored]) -> None:
        """Delete maps, unless they are to be kept."""
        if self._maps and not self._keep:
            for item in scored:
                item.map_file.unlink(missing_ok=True)

    def close(self, *, complete: bool) -> None:
        """Close the predictions; when all is done, delete the folder, unless it is to be kept."""
        self._writer.close()
        if complete and not self._keep:
            shutil.rmtree(self._folder, ignore_errors=True)


Given = TypeVar("Given")


def fill(
    samples: Sequence[Sample],
    root: Path | Address,
    *,
    has: Callable[[str], bool],
    stream: Callable[..., Iterator[Given]],
    add: Callable[[Given, Mapping[str, Sample]], None],
    failed: dict[str, str],
    advance: Callable[[], None],
) -> dict[str, Sample]:
    """Score the samples that are not scored yet, and return those that can be used, by path.

    Parameters
    ----------
    samples : sequence of Sample
    root : Path
        The data set's folder.
    has : callable
        Whether the image of a path is scored already.
    stream : callable
        Scores the others; takes paths, ``on_error`` and ``skip`` as `anomalyclip.Detector.stream` does.
    add : callable
        Keeps the result of an image; also gets the samples by path.
    failed : dict
        Gets the samples that cannot be used, and why.
    advance : callable
        Called for every image that is done.
    """
    paths = {path_of(root, sample.image): sample for sample in samples}
    wanted = [path for path in paths if not has(path)]
    for _ in range(len(paths) - len(wanted)):
        advance()

    def on_error(image: Any, error: InputError) -> None:
        failed[paths[image].image] = str(error)
        advance()

    def is_one_of_several(id: str) -> bool:
        if id in paths:
            return False
        file, _ = locate(id)
        if paths[file].image not in failed:
            why = "holds several images, but a data set has one label and one mask per file: split it"
            on_error(file, InputError(f"{file}: {why}"))
        return True

    for given in stream(wanted, on_error=on_error, skip=is_one_of_several):
        add(given, paths)
        advance()
    return {path: sample for path, sample in paths.items() if sample.image not in failed}


class DetectorSource:
    """Scores images as they are needed.

    Parameters
    ----------
    detector : Detector
        The detector, without a threshold.
    root : path
        The data set's folder.
    folder : path
        Folder for maps and predictions.jsonl.
    batch_size : int
        Images per batch.
    keep : bool
        Keep the maps when the evaluation is complete.
    resume : bool
        Continue after the existing predictions.
    """

    def __init__(
        self,
        detector: Detector,
        root: Path | Address,
        folder: Path,
        *,
        batch_size: int = 1,
        keep: bool = False,
        resume: bool = False,
    ) -> None:
        self._detector, self._root, self._batch_size = detector, root, batch_size
        self._store = Store(folder, keep=keep, resume=resume)
        self._scale = detector.scale(assumed=self._store.value_range)

    @property
    def value_range(self) -> Range | None:
        """The scale of images of more than 8 bits, once it is known."""
        return self._store.value_range

    def of(
        self, samples: Sequence[Sample], failed: dict[str, str], advance: Callable[[], None]
    ) -> list[Scored]:
        """Score the images that are not scored yet; see `Source`."""
        if not samples:  # a class whose files are all missing
            return []
        detector = self._detector.of_class(samples[0].class_name)
        found = fill(
            samples,
            self._root,
            has=self._store.has,
            stream=partial(detector.stream, batch_size=self._batch_size, scale=self._scale),
            add=lambda prediction, paths: self._store.add(
                prediction, paths[str(prediction.image_path)].image
            ),
            failed=failed,
            advance=advance,
        )
        pictures = detector.reference_pictures()
        scored = [
            replace(self._store.scored(path, sample), pictures=pictures) for path, sample in found.items()
        ]
        return over_class(detector.scorer, scored)

    def release(self, scored: Sequence[Scored]) -> None:
        """Delete maps, unless `keep` is set."""
        self._store.release(scored)

    def close(self, *, complete: bool) -> None:
        """Close the predictions; if the evaluation is complete, delete the folder, unless `keep` is set."""
        self._store.close(complete=complete)


def over_class(scorer: Scorer, scored: list[Scored]) -> list[Scored]:
    """Return a class's images with the scores that the method was published with for all of them together."""
    together = getattr(scorer, "over_class", None)
    if together is None or not scored:
        return scored
    scores = np.array([item.score for item in scored], np.float32)
    highest = np.array([read_map(item.map_file).max() for item in scored], np.float32)
    found = together(scores, highest)
    if found is None:
        return scored
    return [replace(item, score=float(score)) for item, score in zip(scored, found, strict=True)]


class FolderSource:
    """Reads maps of any system from a folder: ``maps/<relative path>.npy``, as ``predict --save map`` writes them.

    The path may be with or without the image's extension: ``a.png.npy`` is used before ``a.npy``, which must belong to
    one image only. Scores are read from the folder's predictions.jsonl. The score of a map that is not listed there is
    its maximum.

    Parameters
    ----------
    folder : path
        A folder that holds ``maps/``, or the maps themselves.

    Raises
    ------
    AnomalyCLIPError
        There is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        require_here(folder, "saved maps")
        if not folder.is_dir():
            raise AnomalyCLIPError(
                f"{folder}: no such folder; expected maps as `predict --save map` writes them"
            )
        self._folder = folder
        self._maps = folder / "maps" if (folder / "maps").is_dir() else folder
        self._known = {
            os.path.normpath(folder / record["files"]["map"]): (path, float(record["pred_score"]))
            for path, record in _records(folder)
            if "map" in record["files"]
        }

    def of(
        self, samples: Sequence[Sample], failed: dict[str, str], advance: Callable[[], None]
    ) -> list[Scored]:
        """Find the maps; see `Source`."""
        found = []
        namesakes = Counter(without_ending(safe_name(sample.image)) for sample in samples)
        for sample in samples:
            try:
                path = self._file_of(sample.image, namesakes)
                _, score = self._known.get(os.path.normpath(path), (None, None))
                found.append(Scored(sample, float(read_map(path).max()) if score is None else score, path))
            except InputError as error:
                failed[sample.image] = str(error)
            advance()
        return found

    def _file_of(self, image: str, namesakes: Counter[str]) -> Path:
        """Return the file of an image's map; predictions.jsonl decides whose a shared short name is."""
        whole = safe_name(image)
        own = self._maps / f"{whole}.npy"
        if own.is_file():
            return own
        short = without_ending(whole)
        path = self._maps / f"{short}.npy"
        owner, _ = self._known.get(os.path.normpath(path), (None, None))
        named = owner is None or re.split(r"[/\\]", owner)[-1] == whole.rpartition("/")[2]
        if not named or (owner is None and namesakes[short] > 1):
            raise InputError(f"{own}: no such map, and {path.name} belongs to another image")
        return path

    def release(self, scored: Sequence[Scored]) -> None:
        """Keep them: they belong to the user."""

    def close(self, *, complete: bool) -> None:
        """Do nothing: no file is open."""


def read_map(path: Path) -> NDArray[np.float32]:
    """Return a map as float32 (H, W).

    Raises
    ------
    InputError
        It is missing, no ``.npy`` file of real numbers, not (H, W), or has values that are not finite.
    """
    try:
        require_regular(path)
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such map") from None
    except InputError:
        raise
    except Exception as error:  # what a damaged header raises depends on the damage
        raise InputError(f"{path}: not a readable .npy file ({error})") from None
    if (
        not isinstance(values, np.ndarray)
        or values.ndim != 2
        or values.dtype.kind not in "fiu"
        or not values.size
    ):
        raise InputError(f"{path}: expected real numbers of shape (height, width)")
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: has a NaN or an infinite value, which cannot be ranked")
    return values


def side_of_maps(folder: Path) -> int | None:
    """Return the longer side of the first map in a folder or its subfolders; None if there is no map."""
    for path in sorted(folder.rglob("*.npy")):
        height, width = read_map(path).shape
        return max(int(height), int(width))
    return None


class ArrayFiles(Sequence[Any]):
    """Arrays on disk that are read at each access; None if there is no file."""

    def __init__(self, files: Sequence[Path | None], read: Callable[[Path], NDArray[Any]]) -> None:
        self._files, self._read = files, read

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        file = self._files[index]
        return None if file is None else self._read(file)


def _records(folder: Path) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield image path and record of each prediction in a folder."""
    file = folder / "predictions.jsonl"
    if not file.is_file():
        return
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = {"files": {}, **parse_json(line)}
                if not (
                    math.isfinite(record["pred_score"]) and isinstance(record["files"].get("map", ""), str)
                ):
                    raise ValueError
                yield record.get("image_path"), record
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                raise AnomalyCLIPError(
                    f"{file}, line {number}: damaged; expected a line written by `predict`"
                ) from None
