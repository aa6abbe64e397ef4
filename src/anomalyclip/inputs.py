"""What a user points at (files, folders, patterns, lists) to image files and the names of their results."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.readers import suffixes


@dataclass(frozen=True)
class ImageFile:
    """An image file and the relative path under which its results are kept."""

    path: str
    name: str


def find_images(
    paths: Sequence[str | os.PathLike[str]], *, skipped: Counter[str] | None = None
) -> Iterator[ImageFile]:
    """List images: files as they are, folders recursively, patterns (``parts/*.png``) that match something; each once.

    Results are named by the path below what was pointed at: below the folder if it is one folder, else below the
    folder that all of them have in common. Other files in folders are skipped; `skipped` counts them by ending.

    Raises
    ------
    AnomalyCLIPError
        A path does not exist, a pattern matches nothing, a folder holds no image, or one cannot be read.

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
    roots = [Path(match) for path in paths for match in _matches(os.fspath(path))]
    base = _common_folder(roots)
    seen: set[str] = set()
    for root in roots:
        for path in _walk(root, skipped) if root.is_dir() else [os.fspath(root)]:
            if path not in seen:
                seen.add(path)
                yield ImageFile(path, _relative(path, base))


def read_list(lines: Iterable[str]) -> Iterator[ImageFile]:
    r"""Take image paths from lines, one per line, as they come; empty lines are skipped.

    Results are named by the path relative to the working folder.

    Raises
    ------
    AnomalyCLIPError
        A line has a NUL: this is no list of paths, or none in UTF-8.

    Examples
    --------
    >>> [image.path for image in read_list(["a.png\n", "\n", "parts/b c.png\n"])]
    ['a.png', 'parts/b c.png']
    """
    for line in lines:
        if "\0" in line:
            raise AnomalyCLIPError(
                f"the list of images has {line[:40]!r}: expected UTF-8 text with one path per line (not UTF-16, not "
                "separated by NUL, and no image itself)"
            )
        if path := line.rstrip("\r\n"):
            yield ImageFile(path, _relative(path, os.getcwd()))


def read_list_file(path: str | os.PathLike[str]) -> list[ImageFile]:
    """Read a file with one image path per line, in UTF-8 with or without a byte order mark.

    Raises
    ------
    AnomalyCLIPError
        It cannot be read, is no such list, or names no image.
    """
    try:
        content = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise AnomalyCLIPError(f"{path}: not a readable list of image paths ({error.strerror})") from None
    try:
        images = list(read_list(content.split("\n")))
    except AnomalyCLIPError as error:
        raise AnomalyCLIPError(f"{path}: {error}") from None
    if not images:
        raise AnomalyCLIPError(f"{path}: the list is empty; expected one image path per line")
    return images


def _matches(path: str) -> list[str]:
    if os.path.exists(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        what = "nothing matches this pattern" if glob.has_magic(path) else "no such file or folder"
        raise AnomalyCLIPError(f"{path}: {what}")
    return matches


def _common_folder(roots: Sequence[Path]) -> str:
    folders = [os.path.abspath(root if root.is_dir() else root.parent) for root in roots]
    try:
        return os.path.commonpath(folders)
    except ValueError:  # nothing, or several drives
        return os.getcwd()


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_new(folder: str, visited: set[tuple[int, int]]) -> bool:
    if os.path.basename(folder).startswith(".") or os.path.exists(os.path.join(folder, "predictions.jsonl")):
        return False
    identity = _identity(folder)
    if identity in visited:
        return False
    visited.add(identity)
    return True


def _relative(path: str, base: str) -> str:
    try:
        return Path(os.path.relpath(os.path.abspath(path), base)).as_posix()
    except ValueError:  # on another drive
        return Path(os.path.abspath(path)).as_posix()


def _unreadable(error: OSError) -> None:
    raise AnomalyCLIPError(
        f"{error.filename}: this folder cannot be read ({error.strerror}), and nothing in it would be scored"
    )


def _walk(root: Path, skipped: Counter[str] | None) -> Iterator[str]:
    """Yield the image files below a folder in a stable order.

    Left out are hidden ones, the results of earlier runs, and folders to which a link leads back.
    """
    found = False
    endings = tuple(suffixes())
    visited = {_identity(root)}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        subfolders[:] = [name for name in sorted(subfolders) if _is_new(os.path.join(folder, name), visited)]
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(endings):
                found = True
                yield os.path.join(folder, name)
            elif skipped is not None:
                skipped[os.path.splitext(name)[1].lower() or name] += 1
    if not found:
        raise AnomalyCLIPError(
            f"{root}: no image in this folder or below (looked for {' '.join(sorted(endings))})"
        )
