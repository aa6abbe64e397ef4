"""Download single files over HTTP: cached, resumable, checked against a published digest."""

import contextlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import file_digest

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes so far and in total (None if the server does not say)."""


class DownloadError(AnomalyCLIPError):
    """A file could not be downloaded; the message says which one, from where, and why."""


class _Interrupted(Exception):
    """The connection broke, or the server asked to try again later: worth another attempt."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web and the digest of its content.

    Parameters
    ----------
    url : str
        Its address; the last part of the path is used for its name in the cache.
    digest : str
        ``sha256:<64 hex digits>``, or ``git:<40 hex digits>`` for a git blob id.
    """

    url: str
    digest: str

    @property
    def name(self) -> str:
        """File name in the cache; it starts with digits of the digest, so that equal names do not collide."""
        return f"{self.digest.partition(':')[2][:12]}-{self.url.rsplit('/', 1)[-1]}"


def cache_folder() -> Path:
    """Folder for downloaded and converted files.

    ``ANOMALYCLIP_CACHE``, else ``anomalyclip`` in ``XDG_CACHE_HOME``, else ``~/.cache/anomalyclip``.

    Returns
    -------
    Path
        The folder, which may not exist yet.
    """
    if folder := os.environ.get("ANOMALYCLIP_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "anomalyclip"


def _is_right(path: Path, remote: RemoteFile) -> bool:
    return path.is_file() and file_digest(path, remote.digest.partition(":")[0]) == remote.digest


def cached(remote: RemoteFile, folder: Path) -> Path | None:
    """Return the file if the cache has a complete copy; never uses the network.

    Parameters
    ----------
    remote : RemoteFile
        The file to look for.
    folder : Path
        The cache.

    Returns
    -------
    Path or None
        The checked file; None if it is missing or its digest is wrong.
    """
    path = folder / remote.name
    return path if _is_right(path, remote) else None


def trusted() -> ssl.SSLContext:
    """Return the system's certificate authorities, or certifi's if Python has none (python.org's build on macOS)."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def unreachable(url: str) -> str | None:
    """Return why a server cannot be reached.

    Parameters
    ----------
    url : str
        Any address on the server; its answer does not matter.

    Returns
    -------
    str or None
        The reason; None if the server answers.
    """
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=10, context=trusted()).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error)
    return None


def fetch(
    remote: RemoteFile,
    folder: Path,
    *,
    attempts: int = 4,
    pause: float = 1.0,
    progress: Progress | None = None,
) -> Path:
    """Return a local copy of a remote file; only the missing part is downloaded.

    The download goes to ``<name>.part``, which later calls continue (HTTP ``Range``). The file gets its final name
    only if its digest is right. A lock prevents two processes from downloading the same file: the second one waits
    and then uses the result.

    Parameters
    ----------
    remote : RemoteFile
        What to fetch.
    folder : Path
        The cache; created if missing.
    attempts : int
        Number of connections to try if they break midway.
    pause : float
        Seconds before the second attempt; each further pause is twice as long.
    progress : callable, optional
        Receives the progress. Default: a bar on standard error if that is a terminal.

    Returns
    -------
    Path
        The checked file in `folder`.

    Raises
    ------
    DownloadError
        If the server cannot be reached, refuses, keeps breaking the connection or sends different content, or if
        the cache cannot be written.
    """
    if path := cached(remote, folder):
        return path
    path = folder / remote.name
    part = path.with_name(path.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if _is_right(path, remote):  # another process was faster
                return path
            with contextlib.nullcontext(progress) if progress else _bar(remote.name) as report:
                _download(remote.url, part, attempts, pause, report)
            if not _is_right(part, remote):
                got = file_digest(part, remote.digest.partition(":")[0])
                part.unlink()
                raise DownloadError(
                    f"{remote.url}: the download is not the published file (expected {remote.digest}, "
                    f"got {got}); it was removed. Try again; if this happens again, a proxy may be changing it."
                )
            part.replace(path)
    except OSError as error:
        raise DownloadError(
            f"{remote.url}: cannot be stored in {folder} ({error}); "
            "set ANOMALYCLIP_CACHE to a folder that is writable"
        ) from error
    return path


def _download(url: str, part: Path, attempts: int, pause: float, report: Progress) -> None:
    for attempt in range(1, attempts + 1):
        try:
            return _continue(url, part, report)
        except _Interrupted as error:
            if attempt == attempts:
                raise DownloadError(
                    f"{url}: the connection broke {attempts} times ({error}); {_size(part)} bytes are kept "
                    f"in {part}; try again to continue from there"
                ) from error
            time.sleep(pause * 2 ** (attempt - 1))


def _continue(url: str, part: Path, report: Progress) -> None:
    """Request the bytes that `part` does not have yet, and append them."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT, context=trusted())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # no bytes after `start`: the file is complete or wrong; the digest will tell
            return
        if error.code == 429 or error.code >= 500:
            raise _Interrupted(f"HTTP {error.code} {error.reason}") from error
        raise DownloadError(f"{url}: the server answered HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"{url}: no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error)) from error
    except ValueError as error:  # of an address to which the server refers
        raise DownloadError(f"{url}: the server refers to an address that is none ({error})") from error
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        if not resumed:  # the server does not support ranges: start from the beginning
            start = 0
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, start, report)


def _copy(response: http.client.HTTPResponse, file: IO[bytes], start: int, report: Progress) -> None:
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isascii() and length.isdecimal() else None
    done = start
    report(done, total)
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error)) from error
        if not chunk:
            break
        file.write(chunk)
        done += len(chunk)
        report(done, total)
    if total is not None and done < total:  # a closed connection looks like the end of the file
        raise _Interrupted(f"closed after {done} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """Show a progress bar on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"downloading {name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
