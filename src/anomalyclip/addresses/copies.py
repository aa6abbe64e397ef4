"""Local copies of objects while they are needed: decoders read files. The least recently used are deleted first."""

import atexit
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from anomalyclip.addresses.address import Address
from anomalyclip.addresses.listing import is_dir, objects
from anomalyclip.addresses.stores import request
from anomalyclip.errors import AnomalyCLIPError, InputError

LARGEST = 64 << 30
"""Bytes that an object has at most: a server may send without end."""

KEPT, KEPT_BYTES = 64, 2 << 30
"""Copies that are kept when nobody uses them, and their bytes: an image is opened again when it is drawn."""

_LONGEST = 100

_AT_ONCE, _LISTED = 8, 1000
"""Objects of a folder that are copied at the same time, and whose names are in memory."""


@dataclass
class _Copy:
    folder: str
    path: str = ""
    size: int = 0
    users: int = 0
    dropped: bool = False
    making: Lock = field(default_factory=Lock)


class Copies:
    """Copies of objects in a temporary folder, shared by threads."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._folder = tempfile.mkdtemp(prefix="anomalyclip-")
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._lock = Lock()
        atexit.register(self._delete_all)

    @contextmanager
    def of(self, address: Address, *, again: bool) -> Iterator[str]:
        """Give the path of a copy; `again`: of what the object is now, not what it was before."""
        copy = self._claim(address.url, again)
        try:
            with copy.making:
                if not copy.path:
                    copy.path = _fetch(address, copy.folder)
                    copy.size = os.path.getsize(copy.path)
            yield copy.path
        finally:
            self._release(address.url, copy)

    def _claim(self, url: str, again: bool) -> _Copy:
        with self._lock:
            copy = self._copies.get(url)
            if copy is not None and again:
                self._drop(url, copy)
                copy = None
            if copy is None:
                copy = self._copies[url] = _Copy(tempfile.mkdtemp(dir=self._folder))
            self._copies.move_to_end(url)
            copy.users += 1
            return copy

    def _release(self, url: str, copy: _Copy) -> None:
        with self._lock:
            copy.users -= 1
            if copy.users == 0 and (copy.dropped or not copy.path):
                self._drop(url, copy)
            size = sum(other.size for other in self._copies.values())
            newest = next(reversed(self._copies), None)
            for url, other in list(self._copies.items()):
                if len(self._copies) <= KEPT and size <= KEPT_BYTES:
                    break
                if other.users == 0 and url != newest:
                    size -= other.size
                    self._drop(url, other)

    def _drop(self, url: str, copy: _Copy) -> None:
        """Delete a copy, or have its last user delete it."""
        copy.dropped = True
        if self._copies.get(url) is copy:
            del self._copies[url]
        if copy.users == 0:
            shutil.rmtree(copy.folder, ignore_errors=True)

    def is_mine(self) -> bool:
        """Return whether this process made them; one that was forked must leave them alone."""
        return os.getpid() == self._owner

    def _delete_all(self) -> None:
        if self.is_mine():
            shutil.rmtree(self._folder, ignore_errors=True)


def _fetch(address: Address, folder: str) -> str:
    """Copy an object into a folder, under its own name, which tells its kind."""
    name = os.path.basename(str(address.object).rstrip("/")).replace("\0", "_")
    path = os.path.join(folder, name[-_LONGEST:] or "object")

    def get(store: Any, remote: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)
        store.get_file(remote, path, callback=_limit(address))
        if not os.path.isfile(path):
            raise InputError(f"{address}: a folder; expected one object")

    request(address, get)
    return path


def _limit(address: Address) -> Any:
    from fsspec.callbacks import Callback

    class Limit(Callback):  # type: ignore[misc]
        """Stops a transfer that is larger than any object may be."""

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > LARGEST:
                raise InputError(f"{address}: more than {LARGEST} bytes; expected at most as many")

    return Limit()


_making = Lock()
_copies: Copies | None = None


@contextmanager
def fetched(address: Address, *, again: bool = False) -> Iterator[tuple[str, Address]]:
    """Give a local copy of an object, with the address as it was understood: `Address.inner` is what is in the object.

    Parameters
    ----------
    address : Address
        Of an object, or of an image in it.
    again : bool
        Whether an object is copied again if there is a copy already; for an image in an object the copy is good enough.

    Raises
    ------
    InputError
        There is no such object, or it cannot be read.
    """
    with ExitStack() as stack:
        for reading in address.readings():
            with suppress(FileNotFoundError):
                copy = _of_this_process().of(reading, again=again and not reading.inner)
                yield stack.enter_context(copy), reading
                return
        raise InputError(f"{address}: no such object")


@contextmanager
def on_disk(path: Path | Address) -> Iterator[Path]:
    """Give the path of a file of this machine: the path itself, or that of a copy of the object at an address.

    Raises
    ------
    InputError
        There is no such object, or it cannot be read.
    """
    if not isinstance(path, Address):
        yield path
        return
    with fetched(path, again=True) as (copy, _):
        yield Path(copy)


@contextmanager
def folder_on_disk(path: Path | Address, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[Path]:
    """Give a folder of this machine: the path itself, or copies of the objects below an address until the block ends.

    Errors that are raised in the block name the address.

    Parameters
    ----------
    path : Path or Address
    wanted : callable
        From a name below the address, such as ``maps/a.npy``, to whether it is copied.

    Raises
    ------
    AnomalyCLIPError
        There is no such folder, or an object in it has a name that no file can have.
    """
    if not isinstance(path, Address):
        yield path
        return
    if not is_dir(path):
        raise AnomalyCLIPError(f"{path}: no such folder")
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as parent, ThreadPoolExecutor(_AT_ONCE) as pool:
        folder = Path(parent, "folder")
        folder.mkdir()
        root = path.rstrip("/")
        found = (address for address in objects(path) if wanted(address[len(root) + 1 :]))
        while some := list(islice(found, _LISTED)):
            list(pool.map(lambda address: _copied(address, folder / address[len(root) + 1 :], folder), some))
        try:
            yield folder
        except AnomalyCLIPError as error:
            raise type(error)(str(error).replace(str(folder), root)) from None


def _copied(address: Address, target: Path, folder: Path) -> None:
    if not target.resolve().is_relative_to(folder.resolve()):
        raise AnomalyCLIPError(f"{address}: the name of this object leads out of its folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    request(address, lambda store, path: store.get_file(path, str(target)))


def _of_this_process() -> Copies:
    global _copies
    with _making:
        if _copies is None or not _copies.is_mine():
            _copies = Copies()
        return _copies
