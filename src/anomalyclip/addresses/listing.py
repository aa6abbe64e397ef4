"""What is below an address, object by object: a store with millions of them is never in memory as a whole."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from anomalyclip.addresses.address import Address
from anomalyclip.addresses.stores import request

Enters = Callable[[Address], bool]
"""From a folder below the first to whether it is listed."""


def is_folder(address: Address) -> bool:
    """Return whether an address is a folder: it ends with a slash, or there are objects below it and none at it.

    Raises
    ------
    FileNotFoundError
        There is nothing at it or below it.
    InputError
        The store cannot be asked.
    """
    if address.is_web:
        return False
    kind = str(request(address, lambda store, path: _fresh(store).info(path)["type"]))
    return kind == "directory"


def is_dir(path: Path | Address) -> bool:
    """Return whether there is a folder at a path, or at an address."""
    if not isinstance(path, Address):
        return path.is_dir()
    with suppress(FileNotFoundError):
        return is_folder(path)
    return False


def exists(address: Address) -> bool:
    """Return whether there is an object at an address, or anything below it."""
    try:
        request(address, lambda store, path: _fresh(store).info(path))
    except FileNotFoundError:
        return False
    return True


def beginning(address: Address, length: int) -> bytes:
    """Return the first bytes of an object."""
    content = request(address, lambda store, path: store.cat_file(path, start=0, end=length))
    return bytes(content[:length])


def ending(address: Address, length: int) -> bytes:
    """Return the last bytes of an object."""

    def last(store: Any, path: str) -> bytes:
        size = int(_fresh(store).info(path)["size"])
        return bytes(store.cat_file(path, start=max(0, size - length), end=size)) if size else b""

    return request(address, last)


def length(address: Address) -> int:
    """Return how many bytes an object has."""
    return int(request(address, lambda store, path: _fresh(store).info(path)["size"]))


def entries(folder: Address) -> list[tuple[str, bool]]:
    """Return the names in a folder, and whether each is a folder; nothing, if there is no such folder.

    Raises
    ------
    InputError
        The store cannot be asked.
    """
    try:
        found = request(folder, lambda store, path: _listed(store, path))
    except FileNotFoundError:
        return []
    return [(name, kind == "directory") for name, kind in found]


def objects(folder: Address, enters: Enters = lambda _: True) -> Iterator[Address]:
    """Yield the objects below a folder in a stable order, as they are listed.

    S3 lists them page by page, in the order of their names (as bytes); other stores folder by folder, sorted, first a
    folder's objects and then its subfolders. Folders for which `enters` is false are left out.

    Raises
    ------
    InputError
        The store cannot be asked.
    """
    return _by_pages(folder, enters) if folder.scheme in ("s3", "s3a") else _by_folders(folder, enters)


def _by_pages(folder: Address, enters: Enters) -> Iterator[Address]:
    bucket, _, prefix = folder.url.partition("://")[2].partition("/")
    prefix = prefix and prefix.rstrip("/") + "/"
    base = folder.url.partition("://")[0] + f"://{bucket}/"
    known: dict[str, bool] = {}  # the folders that lead to the last object
    where: dict[str, str] = {}
    while True:
        asked = {"Bucket": bucket, "Prefix": prefix, **where}
        page = request(folder, partial(_page, asked))
        for item in page.get("Contents", ()):
            key = item["Key"]
            if not key.endswith("/") and _entered(key, prefix, base, known, enters):
                yield Address(base + key)
        if not page.get("IsTruncated"):
            return
        where = {"ContinuationToken": page["NextContinuationToken"]}


def _page(asked: dict[str, str], store: Any, _: str) -> dict[str, Any]:
    return dict(store.call_s3("list_objects_v2", **asked))


def _entered(key: str, prefix: str, base: str, known: dict[str, bool], enters: Enters) -> bool:
    """Return whether all folders that lead to a key are listed; names come in order, so that old ones are forgotten."""
    parts = key[len(prefix) :].split("/")[:-1]
    leading = [prefix + "/".join(parts[: depth + 1]) for depth in range(len(parts))]
    for folder in list(known):
        if folder not in leading:
            del known[folder]
    for folder in leading:
        if folder not in known:
            known[folder] = enters(Address(base + folder))
        if not known[folder]:
            return False
    return True


def _by_folders(folder: Address, enters: Enters) -> Iterator[Address]:
    """List one folder at a time: as much is in memory as the largest one has."""
    found = entries(folder)
    for name in sorted(name for name, is_one in found if not is_one):
        yield folder.below(name)
    for name in sorted(name for name, is_one in found if is_one):
        below = folder.below(name)
        if enters(below):
            yield from _by_folders(below, enters)


def _listed(store: Any, path: str) -> list[tuple[str, str]]:
    there = [
        (str(entry["name"]).rstrip("/"), str(entry["type"])) for entry in _fresh(store).ls(path, detail=True)
    ]
    store.invalidate_cache()
    own = path.rstrip("/")  # an empty object "folder/" that some programs leave
    return [(name.rpartition("/")[2], kind) for name, kind in there if name and name != own]


def _fresh(store: Any) -> Any:
    """Return a store that has forgotten what it listed before."""
    store.invalidate_cache()
    return store
