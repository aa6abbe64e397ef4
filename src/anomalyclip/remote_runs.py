"""Runs whose results are in an object store: worked out on this machine, and sent piece by piece.

A store can neither rename nor append, so a run sends its lines in pieces, each an object of its own::

    OUTPUT/.lines/00000000000000004711   the lines from byte 4711 of predictions.jsonl on
    OUTPUT/heatmaps/..., maps/...        the files of these lines; they are there before the lines
    OUTPUT/predictions.jsonl             all lines, when the run ends; then the pieces are deleted

A run that is killed loses the piece that it was working on. One that is resumed puts the pieces together: the number in
their names says where each belongs, so that the result is that of a run that was never stopped, byte for byte.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anomalyclip.addresses import Address, as_address, delete, exists, fetched, objects, put
from anomalyclip.addresses.writing import check_can_be_written
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning
from anomalyclip.overview import VIDEOS, VOLUMES, check_remote_page
from anomalyclip.overview.summary import predictions
from anomalyclip.overview.thumbnails import FOLDER as THUMBNAILS
from anomalyclip.overview.wholes import FOLDER as MAPS_OF_VOLUMES
from anomalyclip.readers import locate
from anomalyclip.readers.nifti import is_volume
from anomalyclip.runs import SETTINGS, RunFolder, begin, told
from anomalyclip.writers import ERRORS, PREDICTIONS, results_of

PIECE, SECONDS = 64, 30.0
"""Images of a piece at most, and seconds after which it is sent, even if it has fewer."""

LINES = ".lines"

_AT_ONCE = 8
"""Objects that are sent or fetched at the same time."""


class AtAddress(RunFolder):
    """As `RunFolder`, at an address. There is no lock: nothing else may write there.

    Parameters
    ----------
    command : str
    address : Address
    resume, overwrite : bool
    results : str
        Name or pattern of an object that shows that there are results at the address.
    earlier : callable, optional
        Returns the objects of an earlier run, which `overwrite` deletes; it raises if one must stay, and all stay then.

    Raises
    ------
    AnomalyCLIPError
        As `RunFolder`, or nothing can be written to the address.
    """

    def __init__(
        self,
        command: str,
        address: Address,
        *,
        resume: bool = False,
        overwrite: bool = False,
        results: str = PREDICTIONS,
        earlier: Callable[[Address], Iterable[Address]] | None = None,
    ) -> None:
        super().__init__(command, None, overwrite=overwrite, results=results)
        check_can_be_written(address)
        self._objects_of_earlier = earlier
        self.resume, self.address = resume, address
        if resume and overwrite:
            raise AnomalyCLIPError("--resume and --overwrite cannot be combined: choose one of them")
        self._pattern = results
        there = any(True for _ in self._results())
        self._check(address, there, has_settings=not there or exists(address.below(SETTINGS)))

    @property
    def place(self) -> Address:
        """Where the results are."""
        return self.address

    @contextmanager
    def begin(self, settings: Mapping[str, Any], *, about: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Yield a folder of this machine with the settings, which are at the address too; it is deleted at the end."""
        with TemporaryDirectory(prefix="anomalyclip-") as parent:
            folder = Path(parent, os.path.basename(self.address.rstrip("/")) or "run")
            folder.mkdir()
            if exists(self.address.below(SETTINGS)):
                _fetch(self.address.below(SETTINGS), folder / SETTINGS)
            try:
                there = begin(folder, self.command, settings, resume=self.resume, about=about)
            except AnomalyCLIPError as error:
                raise type(error)(str(error).replace(str(folder), self.address.rstrip("/"))) from None
            if self.resume and not there:
                _warn_of_nothing(self.address)
            self._prepare(folder)
            put(folder / SETTINGS, self.address.below(SETTINGS))
            yield folder

    def _prepare(self, folder: Path) -> None:
        """Do what comes before the settings are written."""
        if self.overwrite and self._objects_of_earlier is not None:
            for found in self._objects_of_earlier(self.address):
                delete(found)

    def _results(self) -> Iterator[Address]:
        return (found for found in below(self.address) if fnmatchcase(_name(found), self._pattern))


class RemoteFolder(AtAddress):
    """As `RunFolder`, at an address.

    Parameters
    ----------
    command : str
    address : Address
    resume, overwrite : bool

    Raises
    ------
    AnomalyCLIPError
        As `AtAddress`.
    """

    def __init__(
        self, command: str, address: Address, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        super().__init__(command, address, resume=resume, overwrite=overwrite)
        check_remote_page(address)
        self._sender: _Sender | None = None
        self._keeps = False

    def told(self) -> dict[str, Any]:
        """Return what the run that is at the address tells beside its settings; nothing if there is none."""
        if not exists(self.address.below(SETTINGS)):
            return {}
        with TemporaryDirectory(prefix="anomalyclip-") as folder:
            _fetch(self.address.below(SETTINGS), Path(folder, SETTINGS))
            return told(Path(folder))

    def note(self, record: dict[str, Any]) -> None:
        """Take note of a line: its files are sent, and the line with the next piece."""
        assert self._sender is not None
        self._sender.add(record)

    def keep_maps(self) -> None:
        """Have the maps of volumes stay on this machine until the run ends."""
        self._keeps = True

    @contextmanager
    def begin(self, settings: Mapping[str, Any], *, about: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Yield a folder of this machine whose content is sent to the address, and deleted here at the end."""
        with super().begin(settings, about=about) as folder, ThreadPoolExecutor(_AT_ONCE) as pool:
            self._sender = _Sender(folder, self.address, pool, keeps=self._keeps)
            try:
                yield folder
            except BaseException:
                with suppress(AnomalyCLIPError):  # what stopped the run counts
                    self._sender.send_all()
                raise
            self._sender.send_all()
            _each(pool, delete, list(self._pieces()))

    def _prepare(self, folder: Path) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            if self.resume:
                self._take_up(folder, pool)
            elif self.overwrite:
                self._clear(folder, pool)
        delete(self.address.below(ERRORS))

    def _results(self) -> Iterator[Address]:
        if exists(found := self.address.below(PREDICTIONS)):
            yield found
        yield from self._pieces()

    def _take_up(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self._join_lines(folder / PREDICTIONS)
        (folder / THUMBNAILS).mkdir()
        kept = list(below(self.address.below(THUMBNAILS)))
        _each(pool, lambda one: _fetch(one, folder / THUMBNAILS / _name(one)), kept)
        if self._keeps and (folder / PREDICTIONS).exists():
            maps = [record["files"]["map"] for record in predictions(folder) if _is_map_of_volume(record)]
            _each(pool, lambda one: _fetch(self.address.below(one), folder / one), maps)

    def _clear(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        """Delete the results of the earlier run: the files that its lines name, and the lines."""
        path = folder / PREDICTIONS
        self._join_lines(path, strict=False)
        if path.exists():
            named = [file.relative_to(folder).as_posix() for file in results_of(path)]
            _each(pool, delete, map(self.address.below, named))
            path.unlink()
        for found in (THUMBNAILS, MAPS_OF_VOLUMES):
            _each(pool, delete, list(below(self.address.below(found))))
        _each(pool, delete, map(self.address.below, (VOLUMES, VIDEOS)))
        _each(pool, delete, [*self._pieces(), self.address.below(PREDICTIONS)])

    def _join_lines(self, path: Path, *, strict: bool = True) -> None:
        """Put the lines of an earlier run together; some may be missing if not `strict`."""
        if exists(self.address.below(PREDICTIONS)):
            _fetch(self.address.below(PREDICTIONS), path)
        for piece in self._pieces():
            start, length = int(_name(piece)), path.stat().st_size if path.exists() else 0
            if start > length and strict:
                raise AnomalyCLIPError(
                    f"{piece}: the lines before it are missing; start again with --overwrite"
                )
            if start >= length:
                with fetched(piece, again=True) as (copy, _), path.open("ab") as lines:
                    lines.write(Path(copy).read_bytes())

    def _pieces(self) -> Iterator[Address]:
        return (piece for piece in below(self.address.below(LINES)) if _name(piece).isdecimal())


class _Sender:
    """Sends what a run writes: files at once, lines in pieces, and what is made of the whole run at its end."""

    def __init__(self, folder: Path, address: Address, pool: ThreadPoolExecutor, *, keeps: bool) -> None:
        self._folder, self._address, self._pool = folder, address, pool
        lines = folder / PREDICTIONS
        self._sent = lines.stat().st_size if lines.exists() else 0
        self._thumbnails = {path.name for path in (folder / THUMBNAILS).glob("*.jpg")}
        self._keeps, self._kept = keeps, set(folder.glob("maps/**/*.npy"))
        self._waiting: list[tuple[Path, Future[None]]] = []
        self._count, self._since = 0, time.monotonic()

    def add(self, record: dict[str, Any]) -> None:
        if self._keeps and _is_map_of_volume(record):
            self._kept.add(self._folder / record["files"]["map"])
        for file in record["files"].values():
            self._send(file)
        self._count += 1
        if self._count >= PIECE or time.monotonic() - self._since >= SECONDS:
            self._send_piece()

    def send_all(self) -> None:
        """Send the last piece, and everything else that is in the folder; the lines as a whole come last."""
        self._send_piece()
        there = [path for path in sorted(self._folder.rglob("*")) if path.is_file() and path.suffix != ".tmp"]
        rest = [path for path in there if path not in self._kept]
        names = [path.relative_to(self._folder).as_posix() for path in rest]
        wanted = [name for name in names if name != PREDICTIONS and not name.startswith(f"{THUMBNAILS}/")]
        _each(self._pool, lambda name: put(self._folder / name, self._address.below(name)), wanted)
        gone = self._thumbnails - {path.name for path in (self._folder / THUMBNAILS).glob("*.jpg")}
        _each(self._pool, lambda name: delete(self._address.below(f"{THUMBNAILS}/{name}")), sorted(gone))
        if PREDICTIONS in names:
            put(self._folder / PREDICTIONS, self._address.below(PREDICTIONS))

    def _send(self, file: str) -> None:
        path = self._folder / file
        self._waiting.append((path, self._pool.submit(put, path, self._address.below(file))))

    def _send_piece(self) -> None:
        """Send the lines that were not sent yet, once all that they name is there; the files are deleted here."""
        for thumbnail in sorted((self._folder / THUMBNAILS).glob("*.jpg")):
            if thumbnail.name not in self._thumbnails:
                self._thumbnails.add(thumbnail.name)
                put(thumbnail, self._address.below(f"{THUMBNAILS}/{thumbnail.name}"))
        for path, sent in self._waiting:
            sent.result()
            if path not in self._kept:
                path.unlink()
        self._waiting.clear()
        with (self._folder / PREDICTIONS).open("rb") as lines:
            lines.seek(self._sent)
            content = lines.read()
        if content:
            piece = self._address.below(f"{LINES}/{self._sent:020}")
            if exists(piece):
                raise AnomalyCLIPError(
                    f"{piece} is there already: another run is writing to this address; stop it, or choose another one"
                )
            part = self._folder.parent / "piece"
            part.write_bytes(content)
            put(part, piece)
            self._sent += len(content)
        self._count, self._since = 0, time.monotonic()


def _is_map_of_volume(record: Mapping[str, Any]) -> bool:
    """Return whether a line has a map that a NIfTI file is made of when the run ends."""
    id = str(record["image_path"])
    return "map" in record["files"] and is_volume(locate(as_address(id) or id)[0])


def _fetch(address: Address, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with fetched(address, again=True) as (copy, _):
        path.write_bytes(Path(copy).read_bytes())


def _each(pool: ThreadPoolExecutor, action: Any, things: Iterable[Any]) -> None:
    for _ in pool.map(action, things):
        pass


def below(folder: Address) -> Iterator[Address]:
    """Yield the objects in a folder, without those of its subfolders; nothing, if there is none."""
    if exists(folder):
        yield from objects(folder, lambda _: False)


def _name(address: Address) -> str:
    return address.rpartition("/")[2]


def _warn_of_nothing(address: Address) -> None:
    warnings.warn(
        f"{address} has no run to resume: starting from the beginning", AnomalyCLIPWarning, stacklevel=4
    )
