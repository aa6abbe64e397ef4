"""Lists a data set's folder: in natural order, without junk files, and only inside the folder unless allowed."""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import require_regular
from anomalyclip.readers import is_unnamed_image, suffixes
from anomalyclip.readers.base import is_unnamed

JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names (lower case) that operating systems leave behind; hidden names are skipped as well."""


def natural(name: str) -> tuple[list[str | int], str]:
    """Return a sorting key for natural order: "2.png" before "10.png".

    Examples
    --------
    >>> sorted(["10.png", "2.png", "1.png"], key=natural)
    ['1.png', '2.png', '10.png']
    """
    # Splitting at runs of digits alternates text and numbers, so text is never compared with a number. The name itself
    # decides between "1" and "01".
    return [int(part) if index % 2 else part for index, part in enumerate(re.split("([0-9]+)", name))], name


def join(folder: str, name: str) -> str:
    """Return the path of `name` in `folder`, both relative to the root and with forward slashes."""
    return f"{folder}/{name}" if folder else name


class Tree:
    """Folders and files below a root. Each folder is read once, and only when it is needed.

    All paths are strings with forward slashes, relative to the root; "" is the root itself. With `allow_outside` they
    may also be absolute.

    Parameters
    ----------
    root : path-like
        An existing folder.
    allow_outside : bool
        Follow links and paths that leave the root. Otherwise they are refused.

    Raises
    ------
    AnomalyCLIPError
        The root is not a folder. Every method raises it if a path leaves the root or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("10.PNG", "9.png", ".DS_Store", "notes.txt"):
    ...         (Path(folder) / name).touch()
    ...     Tree(folder).images()
    ['9.png', '10.PNG']
    """

    def __init__(self, root: str | os.PathLike[str], *, allow_outside: bool = False) -> None:
        self.root = Path(root)
        self.allow_outside = allow_outside
        if not self.root.is_dir():
            raise AnomalyCLIPError(f"{root}: no such folder; expected the folder that holds a data set")
        self._absolute = os.path.abspath(root).replace(os.sep, "/")
        self._real = os.path.realpath(root).replace(os.sep, "/")
        self._folders: dict[str, list[str]] = {}
        self._files: dict[str, dict[str, bool]] = {}  # by folder: name -> whether it is a link

    def folders(self, path: str = "") -> list[str]:
        """Return the names of the folders in a folder, in natural order; empty if there is no such folder."""
        self._scan(path)
        return self._folders[path]

    def images(self, path: str = "") -> list[str]:
        """Return the names of the image files in a folder, in natural order; empty if there is no such folder."""
        self._scan(path)
        endings = tuple(suffixes())
        names = [name for name in self._files[path] if name.lower().endswith(endings) or is_unnamed(name)]
        for name in names:
            if self._files[path][name]:
                self._refuse_outside(join(path, name))
        return [
            name
            for name in names
            if not is_unnamed(name) or is_unnamed_image(f"{self._absolute}/{join(path, name)}")
        ]

    def walk(self, path: str = "") -> Iterator[str]:
        """Yield a folder and all folders below it; a link to a folder that was already visited is not followed."""
        seen = set()
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(os.path.join(self._absolute, folder))
            if real not in seen:
                seen.add(real)
                yield folder
                waiting += [join(folder, name) for name in reversed(self.folders(folder))]

    def has_folder(self, path: str) -> bool:
        """Return whether the folder exists."""
        parent, _, name = path.rpartition("/")
        return name in self.folders(parent)

    def has_file(self, path: str) -> bool:
        """Return whether the file exists."""
        parent, _, name = path.rpartition("/")
        self._scan(parent)
        if self._files[parent].get(name):
            self._refuse_outside(path)
        return name in self._files[parent]

    def read_text(self, path: str) -> str:
        """Return a text file's content: UTF-8 with or without a byte order mark, otherwise Latin-1."""
        self.has_file(path)
        require_regular(self.root / path)
        content = (self.root / path).read_bytes()
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return content.decode("latin-1")

    def relative(self, path: str) -> str:
        """Return a path from a file or a user as a path relative to the root.

        Parameters
        ----------
        path : str
            Relative to the root or absolute, with forward slashes or backslashes.

        Returns
        -------
        str
            Relative to the root; with `allow_outside`, it may be absolute or start with "..".

        Raises
        ------
        AnomalyCLIPError
            The path leaves the root, and `allow_outside` is off.
        """
        if "\\" in path and not os.path.exists(os.path.join(self._absolute, path)):
            path = path.replace("\\", "/")
        for root in (self._absolute, self._real):
            if path == root or path.startswith(root + "/"):
                path = path[len(root) + 1 :]
        inside = posixpath.normpath(path)
        outside = inside == ".." or inside.startswith(("../", "/"))
        if (outside or PureWindowsPath(inside).is_absolute()) and not self.allow_outside:
            raise AnomalyCLIPError(f"{path!r} leaves the data set's folder {self.root}; {_ALLOW}")
        return "" if inside == "." else inside

    def _scan(self, path: str) -> None:
        if path in self._folders:
            return
        folders, names = [], {}
        full = os.path.join(self._absolute, path)
        if os.path.isdir(full):
            self._refuse_outside(path)
            try:
                with os.scandir(full) as entries:
                    for entry in entries:
                        if entry.name.startswith(".") or entry.name.lower() in JUNK:
                            continue
                        if entry.is_dir():
                            folders.append(entry.name)
                        else:
                            names[entry.name] = entry.is_symlink()
            except OSError as error:
                raise AnomalyCLIPError(f"{full}: cannot be listed: {error.strerror}") from None
        self._folders[path] = sorted(folders, key=natural)
        self._files[path] = {name: names[name] for name in sorted(names, key=natural)}

    def _refuse_outside(self, path: str) -> None:
        if self.allow_outside:
            return
        real = os.path.realpath(os.path.join(self._absolute, path)).replace(os.sep, "/")
        if real != self._real and not real.startswith(self._real.rstrip("/") + "/"):
            raise AnomalyCLIPError(
                f"{path}: is a link to {real}, outside the data set's folder {self.root}; {_ALLOW}"
            )


_ALLOW = "use --allow-outside (allow_outside=True) if you trust the target"
