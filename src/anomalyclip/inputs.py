"""Files, folders, patterns and lists to image files and the names of their results."""

import glob
import os
import pickle
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from tempfile import SpooledTemporaryFile

from anomalyclip.addresses import Address, as_address, as_place, local_path, on_disk
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.names import Names
from anomalyclip.readers import Selection, exists, holder, is_unnamed_image, locate, reader_for, suffixes
from anomalyclip.remote import RESULTS, Place, place_of

Root = Path | Place
"""What a path of a user stands for: a file or folder of this machine, or what is at an address."""

_LONG = 1 << 20
"""Bytes of a listing that are kept in memory."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, or an `Address`, and the relative path that names its results."""

    path: str
    name: str


class Listed:
    """A listing that was read to its end and counted; a long one is kept in a temporary file.

    Parameters
    ----------
    images : iterable of ImageFile

    Examples
    --------
    >>> listed = Listed(ImageFile(f"{name}.png", name) for name in "ab")
    >>> len(listed), [image.name for image in listed]
    (2, ['a', 'b'])
    """

    def __init__(self, images: Iterable[ImageFile]) -> None:
        self._count = 0
        self._file = SpooledTemporaryFile(max_size=_LONG)  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)
        for image in images:
            pickle.dump((image.path, image.name), self._file)
            self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ImageFile]:
        at = 0
        for _ in range(self._count):
            self._file.seek(at)
            path, name = pickle.load(self._file)
            at = self._file.tell()
            yield ImageFile(path, name)


def find_images(
    paths: Sequence[str | os.PathLike[str]],
    *,
    skipped: Counter[str] | None = None,
    leave_out: Callable[[str, str], bool] | None = None,
    selection: Selection | None = None,
) -> Iterator[ImageFile]:
    """List the images in files, folders (searched recursively) and patterns (``parts/*.png``), each once.

    Each of them may also be an address, such as ``s3://bucket/parts``. What is at an address is listed as it arrives.

    Results are named by the path relative to the folder, if `paths` is one folder, and otherwise relative to the
    folder that all paths have in common. Other files in folders are skipped; `skipped` counts them by file extension.
    `leave_out`, called with a folder of `paths` and the path of an image in it, leaves the image out if true.
    `selection` says which images are wanted of videos and volumes whose paths do not say it themselves.

    Raises
    ------
    AnomalyCLIPError
        A path does not exist, a pattern matches nothing, or a folder has no images or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "line 1").mkdir()
    ...     for name in ("b.PNG", "line 1/a.jpg", "notes.txt", ".hidden.png"):
    ...         Path(folder, name).touch()
    ...     [image.name for image in find_images([folder])]
    ['b.PNG', 'line 1/a.jpg']
    """
    roots = [root for path in paths for root in _roots(path)]
    base = _common_folder(roots)
    seen = Names()
    for root in roots:
        is_alone = len(roots) == 1 and (isinstance(root, Place) or root.is_dir())  # lists none twice
        for path in _images(root, skipped, leave_out):
            if not (is_alone or seen.add(path)):
                continue
            wanted = _selected(path, selection)
            yield ImageFile(wanted, relative(holder(wanted), base))


def _roots(path: str | os.PathLike[str]) -> Iterator[Root]:
    address = as_address(path)
    if address is not None:
        yield place_of(address)
    else:
        yield from (Path(match) for match in _matches(local_path(os.fspath(path))))


def _images(
    root: Root, skipped: Counter[str] | None, leave_out: Callable[[str, str], bool] | None
) -> Iterator[str]:
    if isinstance(root, Place):
        yield from root.images(is_unnamed_image, skipped=skipped, leave_out=leave_out)
    elif not root.is_dir():
        yield from _members(os.fspath(root))
    else:
        for path in _walk(root, skipped):
            if leave_out is None or not leave_out(os.fspath(root), path):
                yield path


def _selected(path: str, selection: Selection | None) -> str:
    if selection is None:
        return path
    if isinstance(path, Address):
        name = path.object.rpartition("/")[2]
        wanted = reader_for(name + path.inner).select(name + path.inner, selection)
        return Address(path.url, wanted[len(name) :])
    return reader_for(path).select(path, selection)


def read_list(lines: Iterable[str]) -> Iterator[ImageFile]:
    r"""Read image paths or addresses from lines, one per line, as the lines arrive; empty lines are skipped.

    Results are named by the path relative to the working folder; those of addresses by what follows ``://``.

    Raises
    ------
    AnomalyCLIPError
        A line contains a NUL character, so this is not a list of paths in UTF-8.

    Examples
    --------
    >>> [image.path for image in read_list(["a.png\n", "\n", "parts/b c.png\n"])]
    ['a.png', 'parts/b c.png']
    """
    for line in lines:
        if "\0" in line:
            raise AnomalyCLIPError(
                f"the list of images contains {line[:40]!r}: expected UTF-8 text with one path per line (not UTF-16, "
                "not separated by NUL, and not an image)"
            )
        if path := line.rstrip("\r\n"):
            path = as_address(path) or local_path(path)
            yield ImageFile(path, relative(path, os.getcwd()))


def read_list_file(path: str | os.PathLike[str]) -> Iterator[ImageFile]:
    """Yield the images of a file or an address with one path per line, in UTF-8 with or without a byte order mark.

    Raises
    ------
    AnomalyCLIPError
        The file cannot be read, is not such a list, or is empty.
    """
    with on_disk(as_place(path)) as file:
        yield from _in_list(path, file)


def _in_list(path: str | os.PathLike[str], file: Path) -> Iterator[ImageFile]:
    found = False
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            for image in read_list(lines):
                found = True
                yield image
    except OSError as error:
        raise AnomalyCLIPError(f"{path}: cannot read the list of image paths ({error.strerror})") from None
    except AnomalyCLIPError as error:
        raise AnomalyCLIPError(f"{path}: {error}") from None
    if not found:
        raise AnomalyCLIPError(f"{path}: the list is empty; expected one image path per line")


def _members(path: str) -> list[str]:
    """Return the file, or the files that it lists, if it is an index of others."""
    try:
        return reader_for(path).members(path)
    except InputError:
        raise
    except Exception as error:  # of a damaged index
        raise AnomalyCLIPError(f"{path}: cannot read which files it lists ({error})") from None


def is_image(path: str) -> bool:
    """Return whether a file in a folder counts as an image: by its extension, or without one by its content."""
    return path.lower().endswith(tuple(suffixes())) or is_unnamed_image(path)


def _matches(path: str) -> list[str]:
    if os.path.exists(path) or exists(locate(path)[0]):  # also one image of a file, an archive, a selection
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        what = "nothing matches this pattern" if glob.has_magic(path) else "no such file or folder"
        raise AnomalyCLIPError(f"{path}: {what}")
    return matches


def _common_folder(roots: Sequence[Root]) -> str:
    """Return the folder that names are relative to; of addresses, as the text that they begin with."""
    places = [root for root in roots if isinstance(root, Place)]
    if places:
        if len(places) < len(roots):
            return ""
        levels = zip(*(place.folder.rstrip("/").split("/") for place in places), strict=False)
        common = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
        return "/".join([*common, ""]) if len(common) > 2 else ""
    folders = [
        os.path.abspath(root if root.is_dir() else root.parent) for root in roots if isinstance(root, Path)
    ]
    try:
        return os.path.commonpath(folders)
    except ValueError:  # no folders, or folders on several drives
        return os.getcwd()


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_new(folder: str, visited: set[tuple[int, int]]) -> bool:
    if os.path.basename(folder).startswith(".") or os.path.exists(os.path.join(folder, RESULTS)):
        return False
    identity = _identity(folder)
    if identity in visited:
        return False
    visited.add(identity)
    return True


def absolute(path: str) -> str:
    """Return the text by which images are compared: an absolute path, or an address as it is shown."""
    return as_address(path) or os.path.abspath(path)


def relative(path: str, base: str) -> str:
    """Return the name of a file's results: its path relative to a folder, with forward slashes."""
    if isinstance(path, Address):
        return path[len(base) :] if base and path.startswith(base) else path.partition("://")[2]
    base = base or os.getcwd()
    try:
        return Path(os.path.relpath(os.path.abspath(path), base)).as_posix()
    except ValueError:  # on another drive
        return Path(os.path.abspath(path)).as_posix()


def _unreadable(error: OSError) -> None:
    raise AnomalyCLIPError(
        f"{error.filename}: cannot read this folder ({error.strerror}), so its images cannot be scored"
    )


def files_below(root: str | os.PathLike[str], on_error: Callable[[OSError], None]) -> Iterator[str]:
    """Yield the files below a folder in a stable order.

    Hidden files, the results of earlier runs, and folders that a link has already led to are skipped. `on_error` is
    called with the error of each folder that cannot be read.
    """
    visited = {_identity(root)}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=on_error):
        subfolders[:] = [name for name in sorted(subfolders) if _is_new(os.path.join(folder, name), visited)]
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(folder, name)


def _walk(root: Path, skipped: Counter[str] | None) -> Iterator[str]:
    """Yield the image files below a folder in a stable order."""
    found = False
    endings = tuple(suffixes())
    for path in files_below(root, _unreadable):
        if path.lower().endswith(endings) or is_unnamed_image(path):
            found = True
            yield path
        elif skipped is not None:
            name = os.path.basename(path)
            skipped[os.path.splitext(name)[1].lower() or name] += 1
    if not found:
        raise AnomalyCLIPError(
            f"{root}: no images in this folder or its subfolders (looked for {' '.join(sorted(endings))})"
        )
