"""Lists a data set's folder: in natural order, without junk files, and only inside the folder unless allowed."""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath

from anomalyclip.addresses import Address, as_address, entries, is_dir, local_path, on_disk
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import require_regular
from anomalyclip.readers import is_unnamed_image, suffixes
from anomalyclip.readers.base import is_unnamed
from anomalyclip.remote import begins_like_an_image

JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names (lower case) that operating systems leave behind; hidden names are skipped as well."""

_EXPECTED = "no such folder; expected the folder that holds a data set"
_ALLOW = "use --allow-outside (allow_outside=True) if you trust the target"


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

    root: Path | Address
    _advice = _ALLOW

    def __init__(self, root: str | os.PathLike[str], *, allow_outside: bool = False) -> None:
        self.root = Path(root)
        self.allow_outside = allow_outside
        if not self.root.is_dir():
            raise AnomalyCLIPError(f"{root}: {_EXPECTED}")
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
            name for name in names if not is_unnamed(name) or self._begins_like_an_image(join(path, name))
        ]

    def walk(self, path: str = "") -> Iterator[str]:
        """Yield a folder and all folders below it; a link to a folder that was already visited is not followed."""
        seen = set()
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            real = self._where(folder)
            if real not in seen:
                seen.add(real)
                yield folder
                waiting += [join(folder, name) for name in reversed(self.folders(folder))]

    def has_folder(self, path: str) -> bool:
        """Return whether the folder exists."""
        parent, _, name = path.rpartition("/")
        return name in self.folders(parent)

    def is_folder(self, path: str) -> bool:
        """Return whether a path from `relative` is a folder; with `allow_outside`, it may lead anywhere."""
        return (Path(self._absolute) / path).is_dir()

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
        with on_disk(self.root / path) as file:
            require_regular(file)
            content = file.read_bytes()
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
        return self._inside(path)

    def _inside(self, path: str) -> str:
        for root in self._roots():
            if path == root or path.startswith(root + "/"):
                path = path[len(root) + 1 :]
        inside = posixpath.normpath(path)
        outside = inside == ".." or inside.startswith(("../", "/"))
        if (outside or PureWindowsPath(inside).is_absolute()) and not self.allow_outside:
            raise AnomalyCLIPError(f"{path!r} leaves the data set's folder {self.root}; {self._advice}")
        return "" if inside == "." else inside

    def _roots(self) -> Iterable[str]:
        """Return what absolute paths of files in the folder may begin with."""
        return self._absolute, self._real

    def _where(self, path: str) -> str:
        """Return what a folder is called after links."""
        return os.path.realpath(os.path.join(self._absolute, path))

    def _begins_like_an_image(self, path: str) -> bool:
        return is_unnamed_image(f"{self._absolute}/{path}")

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
                        if _is_junk(entry.name):
                            continue
                        if entry.is_dir():
                            folders.append(entry.name)
                        else:
                            names[entry.name] = entry.is_symlink()
            except OSError as error:
                raise AnomalyCLIPError(f"{full}: cannot be listed: {error.strerror}") from None
        self._keep(path, folders, names)

    def _keep(self, path: str, folders: Iterable[str], names: dict[str, bool]) -> None:
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


class StoreTree(Tree):
    """As `Tree`, of folders and objects at an address. Each folder is listed once; nothing leads out of it.

    Parameters
    ----------
    root : Address
        Of a folder.

    Raises
    ------
    AnomalyCLIPError
        There is no such folder, or the store cannot be asked.
    """

    root: Address
    _advice = "addresses in files are not followed, and nothing outside of a folder in a store is used"

    def __init__(self, root: Address) -> None:
        if root.is_web:
            raise AnomalyCLIPError(
                f"{root}: web pages cannot be listed, so there is no data set at such an address; give a folder, or an "
                "address such as s3://bucket/data"
            )
        if not is_dir(root):
            raise AnomalyCLIPError(f"{root}: {_EXPECTED}")
        self.root, self.allow_outside = root, False
        self._folders, self._files = {}, {}

    def is_folder(self, path: str) -> bool:
        """See `Tree.is_folder`."""
        return not path or self.has_folder(path)

    def relative(self, path: str) -> str:
        """See `Tree.relative`; nothing may leave the root."""
        if "://" in path and not path.startswith(self.root.rstrip("/") + "/"):
            raise AnomalyCLIPError(f"{path!r} leaves the data set's folder {self.root}; {self._advice}")
        return self._inside(path)

    def _roots(self) -> Iterable[str]:
        return (self.root.rstrip("/"),)

    def _where(self, path: str) -> str:
        return path

    def _begins_like_an_image(self, path: str) -> bool:
        return begins_like_an_image(self.root / path, is_unnamed_image)

    def _scan(self, path: str) -> None:
        if path in self._folders:
            return
        found = entries(self.root / path if path else self.root) if self.is_folder(path) else []
        kept = [(name, is_one) for name, is_one in found if not _is_junk(name)]
        self._keep(
            path,
            [name for name, is_one in kept if is_one],
            {name: False for name, is_one in kept if not is_one},
        )


def tree_of(root: str | os.PathLike[str], *, allow_outside: bool = False) -> Tree:
    """Return the tree below a folder, or below the address of one.

    Raises
    ------
    AnomalyCLIPError
        There is no such folder, or the store cannot be asked.
    """
    if (address := as_address(root)) is not None:
        return StoreTree(address)
    return Tree(local_path(os.fspath(root)), allow_outside=allow_outside)


def path_of(root: Path | Address, name: str) -> str:
    """Return the path of a file of a data set, or its address; `name` is relative to the root.

    Examples
    --------
    >>> path_of(Path("data/nut"), "test/0.png"), path_of(Address("s3://bucket/nut"), "test/0.png")
    ('data/nut/test/0.png', Address('s3://bucket/nut/test/0.png'))
    """
    return root / name if isinstance(root, Address) else os.path.join(root, name)


def name_of(root: Path | Address) -> str:
    """Return the name of a data set's folder, after links.

    Examples
    --------
    >>> name_of(Address("s3://bucket/mvtec/"))
    'mvtec'
    """
    if isinstance(root, Address):
        return root.rstrip("/").rpartition("/")[2]
    return Path(os.path.realpath(root)).name


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK
