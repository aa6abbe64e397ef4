"""Saves predictions: one JSON line per image, and maps, heat maps and masks as files.

```
OUTPUT/predictions.jsonl      one JSON object per image, in the order of the images
OUTPUT/errors.jsonl           image_path and error of each image that could not be scored, if there are any
OUTPUT/maps/NAME.npy                 the anomaly map, float32 (S, S), or (height, width) if the image was cut into tiles
OUTPUT/heatmaps/NAME_heatmap.png     the image with the map drawn over it, and a caption
OUTPUT/masks/NAME_mask.png           0 and 255, at the image's size
```

NAME is the image's relative path without its ending: ``line 1/a.png`` becomes ``line 1/a_mask.png``. If another image
already has the NAME, the later one keeps its ending (``a.jpg_mask.png`` after ``a.png``), and if that is taken too, it
gets a number (``a.jpg~2_mask.png``).
"""

import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePath
from types import TracebackType
from typing import IO, Any

import numpy as np
from PIL import Image

from anomalyclip.decoders import unsaid
from anomalyclip.depth import Range, require_range
from anomalyclip.errors import AnomalyCLIPError, concerning
from anomalyclip.files import linked, open_output, parse_json, replacing, writing
from anomalyclip.inputs import absolute
from anomalyclip.names import Names
from anomalyclip.prediction import Prediction
from anomalyclip.readers import open_image, suffixes
from anomalyclip.visualize import captioned
from anomalyclip.visualize.png import write_png

PREDICTIONS, ERRORS = "predictions.jsonl", "errors.jsonl"
"""Names of the two files with one line per image: images that were scored, and images that could not be scored."""

_FOLDERS = {
    "map": ("maps", ".npy"),
    "heatmap": ("heatmaps", "_heatmap.png"),
    "mask": ("masks", "_mask.png"),
}
SAVEABLE = tuple(_FOLDERS)


class PredictionWriter:
    """Writes predictions into a folder, one by one, so that a run that was killed can be resumed.

    A line is added to `predictions.jsonl` once the image's files are complete. Images that failed are not in
    `done`: a resumed run tries them again and appends their results at the end.

    Parameters
    ----------
    output_dir : str or path
        Folder to write to; created if missing.
    save : collection of {"map", "heatmap", "mask"}
        Which files to write for each image; "mask" needs predictions with a pixel threshold.
    resume : bool
        Continue after the existing predictions. An incomplete last line is removed.
    overwrite : bool
        Replace existing predictions; the files that their lines name are deleted.
    draw : callable, optional
        (image, prediction) -> PIL.Image.Image, for "heatmap"; default `anomalyclip.visualize.captioned`.
        To set its options: `functools.partial(captioned, colormap="turbo")`; `overlay` draws no caption.

    Attributes
    ----------
    done : Names
        `image_path` of every image with a prediction in the file; of those that were there before, as an absolute path
        too.
    value_range : (float, float) or None
        The scale of the images of more than 8 bits in a file that is resumed.

    Raises
    ------
    AnomalyCLIPError
        If `save` holds an unknown name, the folder already holds predictions and neither `resume` nor
        `overwrite` is set, the existing predictions are damaged or lack a kind of file in `save`, or the folder
        cannot be written to.

    Examples
    --------
    >>> import tempfile
    >>> prediction = Prediction(
    ...     image_path="line 1/a.png",
    ...     pred_score=0.25,
    ...     anomaly_map=np.zeros((2, 2), np.float32),
    ...     image_size=(8, 6),
    ... )
    >>> with PredictionWriter(tempfile.mkdtemp(), save=["map"]) as writer:
    ...     record = writer.write(prediction)
    >>> record["pred_score"], record["files"]
    (0.25, {'map': 'maps/line 1/a.npy'})
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        save: Collection[str] = (),
        resume: bool = False,
        overwrite: bool = False,
        draw: Callable[[Image.Image, Prediction], Image.Image] = captioned,
    ) -> None:
        unknown = set(save) - set(SAVEABLE)
        if unknown:
            raise AnomalyCLIPError(f"cannot save {sorted(unknown)}; choose from {', '.join(SAVEABLE)}.")
        if resume and overwrite:
            raise AnomalyCLIPError("resume and overwrite cannot be combined; choose one.")
        self.output_dir = Path(output_dir)
        self.save = tuple(kind for kind in SAVEABLE if kind in save)
        self.draw = draw
        self.done = Names()
        self.value_range: Range | None = None
        self._names = Names()
        self._predictions = self.output_dir / PREDICTIONS
        self._errors = self.output_dir / ERRORS
        with writing(self._predictions):
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if self._predictions.exists() and not overwrite:
                if not resume:
                    raise AnomalyCLIPError(
                        f"{self._predictions} exists; resume it, overwrite it, or choose another folder."
                    )
                self._take_up()
            elif overwrite:
                for path in earlier_results(self.output_dir):
                    path.unlink(missing_ok=True)
            # Unbuffered: once a line is written, the operating system has it, even if this process is killed.
            self._file = io.FileIO(self._predictions, "w" if overwrite else "a")
            # Failed images are tried again, so earlier errors no longer apply.
            self._errors.unlink(missing_ok=True)

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        self._file.close()

    def write(
        self, prediction: Prediction, *, name: str | None = None, image: Image.Image | None = None
    ) -> dict[str, Any]:
        """Write one prediction: first its files, then its line.

        Parameters
        ----------
        prediction : Prediction
            With its `image_path`.
        name : str, optional
            Path of its files within `maps/` and so on, usually the image's path relative to the input folder;
            default: its `image_path`. It never leaves the output folder: a root is removed, and `..` becomes
            `_`. Its ending is left out, unless another image already has that name.
        image : PIL.Image.Image, optional
            The image, for "heatmap"; default: `anomalyclip.readers.open_image` of its `image_path`.

        Returns
        -------
        dict
            The content of the line: `Prediction.to_dict()` and "files", from kind to path relative to the
            output folder.

        Raises
        ------
        AnomalyCLIPError
            If a file cannot be written, or "mask" is to be saved and the prediction has no pixel threshold.
        InputError
            If the image cannot be read or drawn on. Files already written for it are then deleted.
        """
        if prediction.image_path is None:
            raise AnomalyCLIPError("a prediction without image_path cannot be written; set its image_path.")
        name = self._free_name(name or prediction.image_path)
        files: dict[str, str] = {}
        try:
            with concerning(prediction.image_path, "its results cannot be made"):
                if "heatmap" in self.save and image is None:
                    with unsaid():
                        image = open_image(prediction.image_path, value_range=prediction.value_range)
                for kind in self.save:
                    folder, extension = _FOLDERS[kind]
                    path = self.output_dir / folder / f"{name}{extension}"
                    with writing(path), replacing(path) as temporary, open_output(temporary) as file:
                        self._write_content(file, kind, prediction, image)
                    files[kind] = f"{folder}/{name}{extension}"
        except BaseException:
            for written in files.values():
                (self.output_dir / written).unlink(missing_ok=True)
            raise
        record = {**prediction.to_dict(), "files": files}
        with writing(self._predictions):
            _write_line(self._file, record)
        self.done.add(prediction.image_path)
        if files:
            self._names.add(_key(name))
        return record

    def adopt(self, record: dict[str, Any], folder: Path, *, name: str) -> dict[str, Any]:
        """Write a line of another folder of predictions, and link or copy its files, under names that are free here.

        Parameters
        ----------
        record : dict
            The content of the line.
        folder : Path
            The other folder.
        name : str
            As for `write`.

        Returns
        -------
        dict
            The content of the line here.

        Raises
        ------
        AnomalyCLIPError
            A file is missing or cannot be written.
        """
        name = self._free_name(name)
        files: dict[str, str] = {}
        for kind, file in record["files"].items():
            if _result(folder, kind, file) is None:
                raise AnomalyCLIPError(f"{folder / PREDICTIONS}: names {file!r}, which is no result of a run")
            into, extension = _FOLDERS[kind]
            files[kind] = f"{into}/{name}{extension}"
            path = self.output_dir / files[kind]
            with writing(path), replacing(path) as temporary:
                linked(folder / file, temporary)
        record = {**record, "files": files}
        with writing(self._predictions):
            _write_line(self._file, record)
        if files:
            self._names.add(_key(name))
        return record

    def write_error(self, image_path: str | os.PathLike[str], error: BaseException | str) -> None:
        """Record in `errors.jsonl` that an image could not be scored, and why.

        Raises
        ------
        AnomalyCLIPError
            If the file cannot be written.
        """
        with writing(self._errors), io.FileIO(self._errors, "a") as file:
            _write_line(file, {"image_path": os.fspath(image_path), "error": str(error)})

    def withdraw_error(self, image_path: str | os.PathLike[str]) -> None:
        """Remove what `write_error` recorded of an image.

        Raises
        ------
        AnomalyCLIPError
            The file cannot be written.
        """
        with writing(self._errors):
            if not self._errors.exists():
                return
            lines = self._errors.read_bytes().splitlines(keepends=True)
            others = [line for line in lines if json.loads(line)["image_path"] != os.fspath(image_path)]
            if not others:
                self._errors.unlink()
                return
            with replacing(self._errors) as temporary:
                temporary.write_bytes(b"".join(others))

    def _take_up(self) -> None:
        """Remove an incomplete last line; read from the others which images are done and which names are in use."""
        whole = 0
        with self._predictions.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                self._take_up_line(line, f"{self._predictions}, line {number}")
                whole += len(line)
        os.truncate(self._predictions, whole)
        for folder, _ in _FOLDERS.values():  # incomplete files of a run that was killed
            for stray in (self.output_dir / folder).rglob(".*.tmp"):
                stray.unlink()

    def _take_up_line(self, line: bytes, where: str) -> None:
        try:
            record = parse_json(line)
            path, files = record["image_path"], record["files"]
            if not isinstance(path, str):
                raise TypeError("image_path is no text")
            self.value_range = require_range(record.get("value_range")) or self.value_range
            for kind, file in files.items():
                self._names.add(_key(_inner_name(kind, file)))
        except (ValueError, KeyError, TypeError, AttributeError, AnomalyCLIPError) as error:
            raise AnomalyCLIPError(f"{where} is damaged ({error}); delete it, or start again.") from error
        missing = [kind for kind in self.save if kind not in files]
        if missing:
            raise AnomalyCLIPError(
                f"{self._predictions} was written without {', '.join(missing)} files; "
                "resume with the same files to save, or start again."
            )
        self.done.add(path)
        self.done.add(absolute(path))

    def _free_name(self, path: str) -> str:
        whole = safe_name(path)
        name = without_ending(whole)
        if _key(name) in self._names:
            name = whole
        number = 1
        while _key(name) in self._names:
            number += 1
            name = f"{whole}~{number}"
        return name

    def _write_content(
        self, file: IO[bytes], kind: str, prediction: Prediction, image: Image.Image | None
    ) -> None:
        if kind == "map":
            np.save(file, prediction.anomaly_map)
        elif kind == "mask":
            mask = prediction.mask_at()
            if mask is None:
                raise AnomalyCLIPError("masks need a pixel threshold; set one, or do not save masks.")
            write_png(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)), file)
        elif image is not None:
            write_png(self.draw(image, prediction), file)


def earlier_results(folder: Path) -> list[Path]:
    """Return the predictions of an earlier run, last, and the files they name: none may be mistaken for a new run's.

    Raises
    ------
    AnomalyCLIPError
        One leads through a link out of the folder.
    """
    predictions = folder / PREDICTIONS
    return [*results_of(predictions), predictions] if predictions.is_file() else []


def results_of(predictions: Path) -> Iterator[Path]:
    """Yield the files that the lines of a run name, where they would be beside the lines.

    Raises
    ------
    AnomalyCLIPError
        One leads through a link out of the folder.
    """
    with predictions.open("rb") as lines:
        for line in lines:
            try:
                files = dict(parse_json(line)["files"])
            except (ValueError, KeyError, TypeError):
                continue  # a damaged line names no files
            for kind, file in files.items():
                if (path := _result(predictions.parent, kind, file)) is not None:
                    yield path


def _result(output: Path, kind: str, file: object) -> Path | None:
    """Return the path of a result that a line names; None if no run writes such a file: a line may be anybody's.

    Raises
    ------
    AnomalyCLIPError
        It would be deleted through a link, somewhere else.
    """
    if kind not in _FOLDERS or not isinstance(file, str) or "\0" in file or safe_name(file) != file:
        return None
    folder, extension = _FOLDERS[kind]
    if not file.startswith(f"{folder}/") or not file.endswith(PurePath(f"x{extension}").suffix):
        return None
    path, inside = output / file, os.path.realpath(output)
    if os.path.realpath(path.parent) != os.path.normpath(os.path.join(inside, os.path.dirname(file))):
        raise AnomalyCLIPError(
            f"{path.parent} leads through a link to {os.path.realpath(path.parent)}, where nothing is deleted: "
            "remove the link, or choose another folder"
        )
    return path


def safe_name(path: str | os.PathLike[str]) -> str:
    """Return `path` as a relative path with forward slashes that stays inside its folder.

    Examples
    --------
    >>> safe_name("line 1/./a.png"), safe_name("/data/b/../a.png"), safe_name("../a.png")
    ('line 1/a.png', 'data/a.png', '_/a.png')
    """
    pure = PurePath(os.path.normpath(path))
    parts = ["_" if part == ".." else part for part in pure.parts if part != pure.anchor]
    return "/".join(parts) or "_"


def without_ending(name: str) -> str:
    """Return an image's name without its file extension; which image of a file it is, is kept.

    Examples
    --------
    >>> without_ending("line 1/a.png"), without_ending("v1.2"), without_ending("pages.tif#3")
    ('line 1/a', 'v1.2', 'pages#3')
    """
    path, number = re.fullmatch(r"(.*?)((?:#axis=[a-z]+)?(?:#\d+)?)", name, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    endings = [ending for ending in suffixes() if path.lower().endswith(ending)]
    stem = path[: len(path) - len(max(endings, key=len, default=""))]
    return stem + number if stem.rpartition("/")[2] else name  # of ".png" nothing would be left


def _key(name: str) -> str:
    """Return the key by which names are compared: some file systems treat A.png and a.png as the same file."""
    return name.casefold()


def _inner_name(kind: str, file: str) -> str:
    folder, extension = _FOLDERS[kind]
    return file.removeprefix(folder + "/").removesuffix(extension)


def _write_line(file: io.RawIOBase, record: dict[str, Any]) -> None:
    """Write a whole line: an unbuffered file may write only a part, and raises the error at the next write."""
    rest = memoryview(json.dumps(record, allow_nan=False).encode() + b"\n")
    while rest:
        rest = rest[file.write(rest) :]
