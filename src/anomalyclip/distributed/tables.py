"""Predictions as tables: their columns, and the Parquet files of a run, each of which is whole or not there."""

import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalyclip.addresses import Address, delete, ending, exists, on_disk
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import replacing, writing
from anomalyclip.names import Names
from anomalyclip.remote_runs import below

if TYPE_CHECKING:
    import pyarrow

PARTS = "part-*.parquet"
"""Pattern of the files of a run."""

_COMMAND = "anomalyclip predict --ray"

_MARK = {b"written by": _COMMAND.encode()}
"""Metadata of the files of a run: other programs call theirs part-... too, and may have the same columns."""

_FOOTER = 1 << 18
"""Bytes at the end of a file that have its columns and metadata."""

_AT_ONCE, _WINDOW = 8, 64
"""Files that are read at the same time, and whose rows are in memory."""

ROWS, _BYTES, _SECONDS = 1000, 64 << 20, 30.0
"""When a file is written: as soon as it has so many rows or bytes, or the first row waits for so long."""


def arrow() -> Any:
    """Return the ``pyarrow`` package, with the modules that are used here.

    Raises
    ------
    AnomalyCLIPError
        It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise AnomalyCLIPError("Parquet files need pyarrow: pip install 'anomalyclip[ray]'") from None
    return pyarrow


def schema(*, maps: bool) -> "pyarrow.Schema":
    """Return the columns of a table of predictions."""
    pa = arrow()
    region = pa.struct(
        [
            ("box", pa.list_(pa.int64())),
            ("area", pa.int64()),
            ("peak_score", pa.float64()),
            ("peak_position", pa.list_(pa.int64())),
        ]
    )
    columns = [
        ("path", pa.string()),
        ("source", pa.string()),
        ("images", pa.int32()),
        ("score", pa.float64()),
        ("label", pa.bool_()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("time", pa.float64()),
        ("value_range", pa.list_(pa.float64())),
        ("nearest", pa.string()),
        ("regions", pa.list_(region)),
        ("error", pa.string()),
    ]
    return pa.schema(columns + [("map", pa.binary())] * maps)


def valid(path: str) -> str:
    r"""Return a path as Parquet can hold it; bytes that are no text are spelled out.

    Examples
    --------
    >>> valid("größe.png"), valid("bad\udcff.png")
    ('größe.png', 'bad\\udcff.png')
    """
    return path.encode("utf-8", "backslashreplace").decode()


def table_of(rows: Iterable[dict[str, Any]], *, maps: bool) -> "pyarrow.Table":
    """Return rows as a table."""
    texts = ("path", "source", "error")
    wanted = [
        {**row, **{name: valid(row[name]) for name in texts if row.get(name) is not None}} for row in rows
    ]
    return arrow().Table.from_pylist(wanted, schema=schema(maps=maps))


class Parts:
    """The Parquet files of a run; one process writes them.

    A file is written under another name and renamed, and holds all images of a source or none, so that what is
    written is known from the files alone.

    Parameters
    ----------
    place : Path or Address
        The folder of the run.
    maps : bool
        Whether there are maps.
    rows : int
        A file is written as soon as it has so many.

    Attributes
    ----------
    done : Names
        Sources that are written.
    skipped : int
        Images in the files of an earlier part of the run.
    """

    def __init__(self, place: Path | Address, *, maps: bool, rows: int = ROWS) -> None:
        self._rows = rows
        self._place, self._schema = place, schema(maps=maps)
        self._tables: list[pyarrow.Table] = []
        self._since = time.monotonic()
        self._pending: dict[tuple[str, int], dict[str, pyarrow.Table]] = {}
        self.done, self.skipped = Names(), 0
        there = parts_of(place)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(there), _WINDOW):
                some = there[start : start + _WINDOW]
                for path, outcomes in zip(some, pool.map(_outcomes, some), strict=True):
                    self._take_up(path, outcomes)
        self._number = max(map(_number, there), default=-1) + 1

    def add(self, table: "pyarrow.Table") -> Iterator["pyarrow.Table"]:
        """Take rows, and yield those of sources that are complete and were not there before.

        Raises
        ------
        AnomalyCLIPError
            A file cannot be written.
        """
        for source, rows in _by_source(table):
            count = rows["images"][0].as_py()
            waiting = self._pending.setdefault((source, count), {})
            if len(rows) == count:  # whole: what came of it before may have had another outcome
                waiting.clear()
            for place, row in enumerate(rows.select(["path", "error"]).to_pylist()):
                if row["error"] is None or row["path"] not in waiting:  # it comes twice if a node was lost
                    waiting[row["path"]] = rows.slice(place, 1)
            if len(waiting) < count:
                continue
            whole = list(self._pending.pop((source, count)).values())
            if not self.done.add(source):  # it was scored twice, since a node was lost
                continue
            if not self._tables:
                self._since = time.monotonic()
            self._tables += whole
            yield from whole
        if self._is_due():
            self.flush()

    def flush(self) -> None:
        """Write what was taken."""
        if not self._tables:
            return
        name = f"part-{self._number:06}.parquet"
        path = self._place.below(name) if isinstance(self._place, Address) else self._place / name
        if isinstance(path, Address) and exists(path):
            raise AnomalyCLIPError(
                f"{path} is there already: another run is writing to this address; stop it, or choose another one"
            )
        _write(arrow().concat_tables(self._tables).cast(self._schema), path)
        self._tables, self._number = [], self._number + 1

    def _is_due(self) -> bool:
        rows, size = sum(map(len, self._tables)), sum(table.nbytes for table in self._tables)
        late = bool(self._tables) and time.monotonic() - self._since > _SECONDS
        return late or rows >= self._rows or size >= _BYTES

    def _take_up(self, path: Path | Address, table: "pyarrow.Table") -> None:
        """Note what a file holds. Images that failed are tried again: their rows are removed."""
        failed = set(table.filter(table["error"].is_valid())["source"].to_pylist())
        sources = table["source"].to_pylist()
        good = [source not in failed for source in sources]
        self.skipped += sum(good)
        for source, is_good in zip(sources, good, strict=True):
            if is_good:
                self.done.add(source)
        if not failed:
            return
        if not any(good):
            _delete(path)
            return
        with on_disk(path) as file:
            rest = arrow().parquet.read_table(file).filter(arrow().array(good))
        _write(rest, path)


def parts_of(place: Path | Address) -> Sequence[Path | Address]:
    """Return the Parquet files of a run, in the order in which they were written."""
    if isinstance(place, Address):
        return sorted(found for found in below(place) if fnmatchcase(_name(found), PARTS))
    return sorted(place.glob(PARTS))


def _outcomes(path: Path | Address) -> "pyarrow.Table":
    """Return of which sources a file has results, and which failed."""
    with _reading(path), on_disk(path) as here, arrow().parquet.ParquetFile(here) as file:
        _check_mark(path, file.schema_arrow)
        return file.read(columns=["source", "error"])


def earlier_parts(place: Path | Address) -> list[Any]:
    """Return the files of an earlier run, which may be deleted: paths in a folder, or addresses.

    Raises
    ------
    AnomalyCLIPError
        One of those that are there is damaged, or from another program.
    """
    there = parts_of(place)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for path, found in zip(there, pool.map(_schema_of, there), strict=True):
            _check_mark(path, found)
    return list(there)


def _schema_of(path: Path | Address) -> "pyarrow.Schema":
    """Return the columns and metadata of a file, without reading all of it."""
    parquet = arrow().parquet
    with _reading(path):
        return parquet.read_schema(io.BytesIO(ending(path, _FOOTER)) if isinstance(path, Address) else path)


@contextmanager
def _reading(path: Path | Address) -> Iterator[None]:
    """Say which file cannot be read."""
    try:
        yield
    except (OSError, arrow().ArrowException) as error:
        raise AnomalyCLIPError(
            f"{path} is damaged or not from `{_COMMAND}` ({error}): delete it and resume the run, or move it to "
            "another folder"
        ) from None


def _check_mark(path: Path | Address, found: "pyarrow.Schema") -> None:
    """Refuse a file of another program, which a run would change or delete."""
    _number(path)
    if not _MARK.items() <= (found.metadata or {}).items():
        raise AnomalyCLIPError(
            f"{path} does not say that it is from `{_COMMAND}` of this version, so it is not touched: move it to "
            "another folder, or delete it yourself"
        )


def _check_columns(path: Path | Address, file: Any, columns: Sequence[str]) -> None:
    """Refuse a file that has other columns than those of a run."""
    if lacking := [name for name in columns if name not in file.schema_arrow.names]:
        raise AnomalyCLIPError(
            f"{path} is not from `{_COMMAND}` (it has no column {', '.join(lacking)}): move it to another folder"
        )


def _number(path: Path | Address) -> int:
    """Return the number in the name of a run's file."""
    if found := re.fullmatch(r"part-([0-9]+)\.parquet", _name(path)):
        return int(found[1])
    raise AnomalyCLIPError(
        f"{path} is not from `{_COMMAND}`, whose files are called part-000000.parquet, part-000001.parquet, ...: move "
        "it to another folder"
    )


def _name(path: Path | Address) -> str:
    return str(path).rpartition("/")[2] if isinstance(path, Address) else path.name


def _write(table: "pyarrow.Table", path: Path | Address) -> None:
    """Write a file: it is whole or not there."""
    with writing(path), replacing(path) as temporary:
        marked = table.replace_schema_metadata(_MARK)
        arrow().parquet.write_table(marked, temporary, compression="zstd")


def _delete(path: Path | Address) -> None:
    if isinstance(path, Address):
        delete(path)
    else:
        with writing(path):
            path.unlink()


def _by_source(table: "pyarrow.Table") -> Iterator[tuple[str, "pyarrow.Table"]]:
    """Cut a table into the rows of each source, which are next to each other."""
    sources = table["source"].to_pylist()
    start = 0
    for place in range(1, len(sources) + 1):
        if place == len(sources) or sources[place] != sources[start]:
            yield sources[start], table.slice(start, place - start)
            start = place


def rows_of(place: Path | Address, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run's Parquet files, a few thousand in memory at a time.

    Raises
    ------
    AnomalyCLIPError
        A file is damaged, or pyarrow is not installed.
    """
    pa = arrow()
    for path in parts_of(place):
        with _reading(path), on_disk(path) as here, pa.parquet.ParquetFile(here) as file:
            _check_columns(path, file, columns)
            for batch in file.iter_batches(4096, columns=columns):
                yield from batch.to_pylist()
