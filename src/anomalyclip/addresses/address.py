"""What an address is, and what of it may be shown: never a password, never a query string."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from anomalyclip.errors import AnomalyCLIPError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
"""Two letters at least: C:// is a drive."""

_COLLAPSED = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])")

_WEB = ("http", "https")
_LOCAL = ("file", "local")
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory")
"""Schemes of stores that write each object whole or not at all. A question mark is a part of their objects' names."""

_NUMBERED = re.compile(r"(.+)(#(?:[1-9][0-9]{0,9}|(?:every|axis)=[^#]*))", re.DOTALL)
_ARCHIVE = re.compile(r"\.(?:zip|tar)(?=/)", re.IGNORECASE)

_USER = re.compile(r"://[^/\s'\"]*@")
_QUERY = re.compile(r"\?[^\s'\"<>)]*")


class Address(str):
    """The address of an object, or of one image in it, such as ``s3://bucket/line 1/a.png``.

    The readers follow an `Address` and nothing else: a text that looks like one is a file's name to them. Its text is
    what may be shown: without user, password and query string. Where these are needed, `url` has them.

    Parameters
    ----------
    url : str
        ``SCHEME://...`` as fsspec understands it.
    inner : str
        Which image in the object: ``#3``, or ``/a.png`` in an archive.

    Raises
    ------
    AnomalyCLIPError
        It is no address, or has credentials that are not used.

    Examples
    --------
    >>> address = Address("https://me:secret@example.com/a.tif?signature=abc", "#2")
    >>> address, address.url
    (Address('https://example.com/a.tif#2'), 'https://me:secret@example.com/a.tif?signature=abc')
    """

    url: str
    inner: str

    def __new__(cls, url: str, inner: str = "") -> "Address":  # noqa: D102 - the class's
        if isinstance(url, Address):
            return cls._of(url.url, url.inner + inner)
        found = _SCHEME.match(url)
        if found is None:
            raise AnomalyCLIPError(f"{url}: not an address; expected one such as s3://bucket/folder")
        scheme = found[1].lower()
        if not inner and (numbered := _NUMBERED.fullmatch(url)):
            url, inner = numbered[1], numbered[2]
        if scheme in ("s3", "s3a") and ":" in _authority(url).rpartition("@")[0]:
            raise AnomalyCLIPError(
                f"{_shown(url)}: credentials in the address are not used; give them as AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY or in a profile"
            )
        return cls._of(url, inner)

    @classmethod
    def _of(cls, url: str, inner: str) -> "Address":
        self = super().__new__(cls, _shown(url) + inner)
        self.url, self.inner = url, inner
        return self

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.url, self.inner

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    @property
    def scheme(self) -> str:
        """What stands before ``://``, in lower case."""
        return self.url.partition("://")[0].lower()

    @property
    def is_web(self) -> bool:
        """Whether it is an address of the web, which stands for one file and cannot be listed."""
        return self.scheme in _WEB

    @property
    def hides(self) -> bool:
        """Whether it has a user, a password or a query, which its text does not show."""
        return self.url + self.inner != self

    @property
    def object(self) -> "Address":
        """The object without what is wanted in it."""
        return Address(self.url)

    @property
    def parent(self) -> "Address":
        """The folder that the object is in; the object itself, if it is in none.

        Examples
        --------
        >>> Address("s3://bucket/line 1/a.png").parent, Address("https://example.com/?at=/b").parent
        (Address('s3://bucket/line 1'), Address('https://example.com'))
        """
        scheme, _, rest = self.object.partition("://")
        return Address(f"{scheme}://{rest.rpartition('/')[0] or rest}")

    def below(self, name: str) -> "Address":
        """Return the address of an object below this one; also written as ``address / name``, as for a `Path`.

        Examples
        --------
        >>> Address("s3://bucket/results/").below("maps/a.npy")
        Address('s3://bucket/results/maps/a.npy')
        """
        return Address(f"{self.url.rstrip('/')}/{name}")

    __truediv__ = below

    def readings(self) -> Iterator["Address"]:
        """Yield what this address may mean: an object, an image in an object, a member of an archive.

        Examples
        --------
        >>> [(reading.url, reading.inner) for reading in Address("s3://bucket/a.zip/b.tif#2").readings()]
        [('s3://bucket/a.zip/b.tif', '#2'), ('s3://bucket/a.zip/b.tif#2', ''), ('s3://bucket/a.zip', '/b.tif#2')]
        """
        yield self
        if self.inner.startswith("#"):
            yield Address._of(self.url + self.inner, "")
        for ending in _ARCHIVE.finditer(self.url):
            yield Address._of(self.url[: ending.end()], self.url[ending.end() :] + self.inner)


def as_address(path: str | os.PathLike[str]) -> Address | None:
    r"""Return the address that a user gave; None: it is the path of a file.

    A file that exists is a file, whatever its name looks like. An address that was taken for a `Path`, which has no
    double slashes, is understood too.

    Examples
    --------
    >>> as_address("s3://bucket/a.png"), as_address("C:\\parts\\a.png"), as_address("line:1/a.png")
    (Address('s3://bucket/a.png'), None, None)
    >>> from pathlib import Path
    >>> as_address(Path("s3://bucket/a.png")), as_address(Path("parts/a.png"))
    (Address('s3://bucket/a.png'), None)
    """
    if isinstance(path, Address):
        return path
    text = path if isinstance(path, str) else _COLLAPSED.sub(r"\1://", os.fspath(path))
    found = _SCHEME.match(text)
    if (
        found is None
        or found[1].lower() in _LOCAL
        or not _is_known(found[1].lower())
        or os.path.lexists(path)
    ):
        return None
    return Address(text)


def as_place(path: str | os.PathLike[str]) -> Path | Address:
    """Return what a user's path of one file or folder means: an address, or a path of this machine.

    Examples
    --------
    >>> as_place("s3://bucket/threshold.json"), as_place("file:///data/threshold.json").as_posix()
    (Address('s3://bucket/threshold.json'), '/data/threshold.json')
    """
    return as_address(path) or Path(local_path(os.fspath(path)))


def require_here(path: str | os.PathLike[str] | None, what: str) -> None:
    """Refuse an address where only a path of this machine can be used.

    Parameters
    ----------
    path : path-like or None
        What the user gave; None: nothing.
    what : str
        What the path is of, for the message.

    Raises
    ------
    AnomalyCLIPError
        It is an address.

    Examples
    --------
    >>> require_here("s3://bucket/a.onnx", "a model")
    Traceback (most recent call last):
    anomalyclip.errors.AnomalyCLIPError: s3://bucket/a.onnx: a model cannot be at an address; use a path of this machine
    """
    if path is not None and (address := as_address(path)) is not None:
        raise AnomalyCLIPError(f"{address}: {what} cannot be at an address; use a path of this machine")


def local_path(text: str) -> str:
    """Return the path that ``file://`` leads to; another path is returned unchanged.

    Examples
    --------
    >>> local_path("file:///data/a.png"), local_path("data/a.png")
    ('/data/a.png', 'data/a.png')
    """
    found = _SCHEME.match(text)
    if isinstance(text, Address) or found is None or found[1].lower() not in _LOCAL or os.path.lexists(text):
        return text
    path = text[found.end() :]
    return path if os.path.lexists(path) else unquote(path)


def masked(text: str) -> str:
    """Return a text in which no address has a user, a password or a query string.

    Examples
    --------
    >>> masked("404, url='https://me:secret@example.com/a.png?signature=abc'")
    "404, url='https://example.com/a.png'"
    """
    return _QUERY.sub("", _USER.sub("://", text))


def _authority(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _shown(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in OBJECT_STORES:
        rest = rest.partition("?")[0]
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if at and scheme.lower() in ("az", "abfs", "abfss"):  # a container in an account
        host = f"{user.partition(':')[0]}@{host}"
    return f"{scheme}://{host}{slash}{path}"


def _is_known(scheme: str) -> bool:
    if scheme in (*_WEB, *OBJECT_STORES):
        return True
    try:
        from fsspec import available_protocols
    except ImportError:
        return False
    return scheme in available_protocols()
