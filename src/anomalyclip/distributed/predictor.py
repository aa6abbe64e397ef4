"""`Predictor`: rows with paths or bytes in, rows with predictions out, for Ray Data or any other engine of batches."""

import io
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomalyclip.addresses import as_address
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.loading import load_one_of_several
from anomalyclip.prediction import Prediction, as_threshold
from anomalyclip.readers import Source, holder
from anomalyclip.readers.selection import parted
from anomalyclip.spec import DetectorSpec

if TYPE_CHECKING:
    import pyarrow

    from anomalyclip.prediction import Threshold


class Predictor:
    """Scores batches of rows; made once in each actor.

    A row names an image file (``path``), or holds its content too (``bytes``); then ``path`` is only its name. Files
    are read as everywhere in this package: DICOM, pages of TIFF files and images of more than 8 bits too. The output
    has a row for each image. An image that cannot be used has a row with ``error``; it never fails the batch.

    Parameters
    ----------
    spec : DetectorSpec or str
        The detector, or its JSON (`DetectorSpec.to_json`).
    threshold : float, Threshold or path, optional
        As for `DetectorSpec.load`.
    maps : bool
        Whether to return the anomaly maps; `map_of` decodes them.
    batch_size : int
        Images per step of the model.
    threads : int
        CPU threads.
    follow : bool
        Whether a ``path`` such as ``s3://bucket/a.png`` is an address that is followed; otherwise it is a file's name.

    Raises
    ------
    AnomalyCLIPError
        The spec cannot be loaded here.

    Examples
    --------
    >>> from anomalyclip.demo import PICTURES
    >>> predictor = Predictor(DetectorSpec("micro"), threshold=0.5)
    >>> rows = predictor({"path": [str(PICTURES / "slate_crack.jpg"), "missing.png"]}).to_pylist()
    >>> [(row["label"], row["error"]) for row in rows]
    [(True, None), (None, 'missing.png: no such file')]
    """

    def __init__(
        self,
        spec: DetectorSpec | str,
        *,
        threshold: "float | Threshold | str | os.PathLike[str] | None" = None,
        maps: bool = False,
        batch_size: int = 1,
        threads: int = 1,
        follow: bool = False,
    ) -> None:
        spec = spec if isinstance(spec, DetectorSpec) else DetectorSpec.from_json(spec)
        self.detector = load_one_of_several(spec, as_threshold(threshold), threads=threads)
        self.maps, self.batch_size, self.threads, self.follow = maps, batch_size, threads, follow

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> "pyarrow.Table":
        """Return the predictions for a batch.

        Parameters
        ----------
        batch : mapping
            ``path``: (N,) texts, or bytes as the file system has them; ``bytes``, optional: (N,) contents of files.

        Returns
        -------
        pyarrow.Table
            Columns: path (``scan.tif#2`` for the second image of a file), source (the path that was given), images (how
            many rows the source has), score, label, width, height, time, value_range, nearest (JSON), regions, error,
            and map if wanted.

        Raises
        ------
        AnomalyCLIPError
            There is no column ``path``, or the model does not work.
        """
        from anomalyclip.distributed.tables import table_of

        check_columns(batch)
        names = [os.fsdecode(path) for path in batch["path"]]
        if "bytes" not in batch:
            paths = {(self.follow and as_address(name)) or name: name for name in names}
            return table_of(self._rows(paths), maps=self.maps)
        with TemporaryDirectory(prefix="anomalyclip-") as folder:
            copies: dict[str, str] = {}
            for number, (name, content) in enumerate(zip(names, batch["bytes"], strict=True)):
                place = Path(folder, str(number), PurePath(name).name or "image")
                place.parent.mkdir()
                place.write_bytes(content)
                copies[str(place)] = name
            return table_of(self._rows(copies), maps=self.maps)

    def _rows(self, sources: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield a row for each image of the files; the values are what they are called."""
        homes = {home: path for path in sources for home in _homes(path)}
        rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

        def named(id: str) -> tuple[str, str]:
            """Return an image's name and that of its file."""
            path = id if id in sources else homes.get(id) or homes[id.rpartition("#")[0]]
            name = sources[path]
            if id in sources:
                return name, name
            home = max((home for home in _homes(path) if id.startswith(home)), key=len, default=id)
            return name, _homes(name)[0] + id.removeprefix(home)

        def failed(source: Source, error: InputError) -> None:
            source_name, name = named(os.fspath(source))  # type: ignore[arg-type]
            text = str(error).replace(os.fspath(source), name)  # type: ignore[arg-type]
            rows[source_name].append({"path": name, "source": source_name, "error": text})

        predictions = self.detector.stream(
            list(sources),
            batch_size=self.batch_size,
            workers=min(4, self.threads),
            on_error=failed,
            scale=self.detector.scale(strict=True),
        )
        for prediction in predictions:
            source, name = named(str(prediction.image_path))
            rows[source].append({"path": name, "source": source, **self._content(prediction)})
        for of_one in rows.values():
            for row in of_one:
                yield {**row, "images": len(of_one)}

    def _content(self, prediction: Prediction) -> dict[str, Any]:
        row = prediction.to_dict()
        return {
            "score": row["pred_score"],
            "label": row["pred_label"],
            "width": row["image_size"][0],
            "height": row["image_size"][1],
            "time": row.get("time"),
            "value_range": row.get("value_range"),
            "nearest": json.dumps(row["nearest"]) if "nearest" in row else None,
            "regions": row["regions"],
            "map": _packed(prediction.anomaly_map) if self.maps else None,
        }


def check_columns(columns: Iterable[str]) -> None:
    """Refuse rows without a path.

    Raises
    ------
    AnomalyCLIPError
        There is no column ``path``.
    """
    names = list(columns)
    if "path" not in names:
        raise AnomalyCLIPError(
            f"a batch has the columns {', '.join(names)}: expected path, and optionally bytes"
        )


def _homes(path: str) -> list[str]:
    """Return what the ids of a file's images may begin with."""
    try:
        return [holder(path), parted(path)[0]]
    except InputError:  # as the file's error will say
        return [path]


def _packed(anomaly_map: NDArray[np.float32]) -> bytes:
    content = io.BytesIO()
    np.save(content, anomaly_map)
    return zlib.compress(content.getvalue(), 1)


def map_of(content: bytes) -> NDArray[np.float32]:
    """Return the anomaly map in a row's ``map``: float32 (S, S), or (height, width) of an image cut into tiles.

    Raises
    ------
    AnomalyCLIPError
        It is no such content.

    Examples
    --------
    >>> map_of(_packed(np.zeros((2, 3), np.float32))).shape
    (2, 3)
    """
    try:
        found: NDArray[np.float32] = np.load(io.BytesIO(zlib.decompress(content)), allow_pickle=False)
    except (ValueError, zlib.error, EOFError) as error:
        raise AnomalyCLIPError(
            f"a map cannot be read ({error}); expected the column map of a run with maps"
        ) from None
    return found
