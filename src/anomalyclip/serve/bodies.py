"""Bodies of requests, read as they stream in: counted before they are kept, never written to disk.

A body that is too large is refused as soon as it is known to be: by its declared length, or when it passes the limit.
"""

import asyncio
import base64
import binascii
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import proxy

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from anomalyclip.files import parse_json
from anomalyclip.serve.refusals import Refusal
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.uploads import Sent, Stored, Upload, shown_name

_LONGEST_FIELD = 100_000
"""Bytes of a form's field that is not a file."""

_FIELDS = 64
"""Fields of a form that are not files."""

_LARGE_JSON, _MOST_VALUES = 100_000, 2_000_000

_VALUE_BYTES = 32
"""Memory that a value of JSON takes, about: most are numbers in a list."""

_SLOWEST = 10_000
"""Bytes a second that a sender has to reach on average."""


class Held:
    """Bytes that all requests together hold in memory; any thread may count.

    Parameters
    ----------
    limit : int
        Bytes at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count more, or fewer if it is negative.

        Raises
        ------
        Refusal
            There would be more than the limit.
        """
        with self._lock:
            if count > 0 and self.count + count > self.limit:
                raise Refusal(
                    429, "the service holds as many bytes as it may; try again later", retry_after=2
                )
            self.count += count

    def lease(self) -> "Lease":
        """Return what one request holds of it: nothing yet."""
        return Lease(self)


@dataclass
class Lease:
    """Bytes that one request holds; they are given back at the end of a `with` block."""

    held: Held
    count: int = 0

    def take(self, count: int) -> None:
        """Hold more.

        Raises
        ------
        Refusal
            All requests together would hold more than the service may.
        """
        self.held.add(count)
        self.count += count

    def give(self, count: int) -> None:
        """Give a part of it back."""
        count = min(count, self.count)
        self.count -= count
        self.held.add(-count)

    def release(self) -> None:
        """Give all of it back."""
        self.give(self.count)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass
class Form:
    """What a form or a JSON object of images holds."""

    files: list[Sent] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobLimits:
    """Files and bytes of a job at most, and the folder that files are kept in; None: memory."""

    files: int
    bytes: int
    folder: Path | None


async def chunks(
    request: Request, settings: ServeSettings, lease: Lease, *, limit: int | None = None
) -> AsyncIterator[bytes]:
    """Yield the body of a request as it arrives; no more than it may have, and no slower.

    Raises
    ------
    Refusal
        The body is too large (413), too slow (408), or compressed (415), or too much is held already (429).
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "the body is compressed; send it as it is")
    limit = settings.request_bytes if limit is None else limit
    declared = request.headers.get("content-length", "0")
    too_large = Refusal(
        413, f"the request has more than {limit} bytes; send fewer files at once, or start a job"
    )
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    count, loop = 0, asyncio.get_running_loop()
    started = loop.time()
    while True:
        patience = settings.receive_limit + count / _SLOWEST - (loop.time() - started)
        try:
            message = await asyncio.wait_for(request.receive(), max(patience, 0.001))
        except asyncio.TimeoutError:
            raise Refusal(408, "the request took too long to arrive; send it again") from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        count += len(chunk)
        if count > limit:
            raise too_large
        lease.take(len(chunk))
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


class ClientGoneError(Exception):
    """The caller closed the connection: there is nobody to answer."""


async def whole(request: Request, settings: ServeSettings, lease: Lease) -> bytes:
    """Return the whole body."""
    return b"".join([chunk async for chunk in chunks(request, settings, lease)])


async def read_json(request: Request, settings: ServeSettings, lease: Lease) -> dict[str, Any]:
    """Return a body that is a JSON object.

    Raises
    ------
    Refusal
        It is not, or as for `chunks`.
    """
    body = await whole(request, settings, lease)
    lease.take(beside(body))
    return as_object(body) if len(body) < _LARGE_JSON else await asyncio.to_thread(as_object, body)


def beside(body: bytes) -> int:
    """Return how many bytes are in memory besides a JSON body when it is read: its texts or its images, and its values.

    Examples
    --------
    >>> beside(b'{"images": ["aGVsbG8="]}')
    56
    """
    return len(body) + _VALUE_BYTES * _values(body)


def _values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[")


def as_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises
    ------
    Refusal
        The body is not one.
    """
    if _values(body) > _MOST_VALUES:  # each takes many times its bytes when it is read
        raise Refusal(
            413, f"the JSON has more than {_MOST_VALUES} values; send tensors as binary, images as base64"
        )
    try:
        content = parse_json(body)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Refusal(400, "the body must be a JSON object")
    return content


async def read_form(
    request: Request, settings: ServeSettings, lease: Lease, *, job: JobLimits | None = None
) -> Form:
    """Return the files and fields of a request: a form (multipart), or JSON with images as base64.

    Parameters
    ----------
    request, settings, lease
        As for `chunks`.
    job : JobLimits, optional
        The limits of a job instead of a request's.

    Raises
    ------
    Refusal
        It is neither (415), is damaged (400), has too many files (413), or as for `chunks`.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    files = settings.max_files if job is None else job.files
    if kind == b"multipart/form-data":
        parsing = FormParser(options.get(b"boundary", b""), files, None if job is None else job.folder)
        async for chunk in chunks(request, settings, lease, limit=None if job is None else job.bytes):
            parsing.feed(chunk)
        return parsing.finish()
    if kind == b"application/json":
        return form_of_json(await read_json(request, settings, lease), files)
    raise Refusal(
        415,
        "expected multipart/form-data with the images as 'files', or application/json with 'images': [{'name', "
        "'data' (base64)}]",
    )


def form_of_json(content: dict[str, Any], max_files: int) -> Form:
    """Return the form that a JSON object stands for: ``images`` are its files, all else its fields."""
    images = content.pop("images", [])
    if not isinstance(images, list):
        raise Refusal(422, "images: expected a list of {'name', 'data'}")
    if len(images) > max_files:
        raise Refusal(413, f"more than {max_files} images in a request; send fewer at once, or start a job")
    return Form([_of_base64(image, number) for number, image in enumerate(images, start=1)], content)


def _of_base64(image: Any, number: int) -> Upload:
    if isinstance(image, str):
        image = {"data": image}
    if not isinstance(image, dict) or not isinstance(image.get("data"), str) or set(image) - {"name", "data"}:
        raise Refusal(422, f"image {number}: expected {{'name': TEXT, 'data': BASE64}}")
    return Upload(shown_name(image.get("name", ""), number), from_base64(image["data"], f"image {number}"))


def from_base64(text: str, what: str) -> bytes:
    """Return the bytes of a base64 text, or of a ``data:`` URI that holds one.

    Raises
    ------
    Refusal
        It is neither: addresses are never opened.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refusal(422, f"{what}: expected a data: URI in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, f"{what}: not base64; paths and addresses are not opened") from None


class FormParser:
    r"""Reads a multipart form in memory, as its bytes come in.

    Parameters
    ----------
    boundary : bytes
        What separates the parts.
    max_files : int
        Files at most.
    folder : Path, optional
        Where files are kept, under numbers. None: in memory.

    Examples
    --------
    >>> parser = FormParser(b"x", 10)
    >>> parser.feed(b'--x\r\nContent-Disposition: form-data; name="map"\r\n\r\npng\r\n--x--\r\n')
    >>> parser.finish().fields
    {'map': 'png'}
    """

    def __init__(self, boundary: bytes, max_files: int, folder: Path | None = None) -> None:
        if not 1 <= len(boundary) <= 256:
            raise Refusal(400, "multipart/form-data without a boundary")
        self._max_files, self._folder = max_files, folder
        self._form, self._ended = Form(), False
        self._header: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._data: list[bytes] = []
        # Weak: the parser keeps its callbacks, and a cycle would keep the files until Python looks for cycles.
        form = proxy(self)
        callbacks: Any = {
            "on_part_begin": lambda: form._begin(),
            "on_header_field": lambda data, start, end: form._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: form._value.extend(data[start:end]),
            "on_header_end": lambda: form._end_header(),
            "on_headers_finished": lambda: form._end_headers(),
            "on_part_data": lambda data, start, end: form._take(data, start, end),
            "on_part_end": lambda: form._end_part(),
            "on_end": lambda: form._end(),
        }
        self._parser = MultipartParser(boundary, callbacks)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises
        ------
        Refusal
            They are no form, or it has too many parts.
        """
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise Refusal(400, f"damaged form: {error}") from None

    def finish(self) -> Form:
        """Return the form.

        Raises
        ------
        Refusal
            It is not complete.
        """
        if not self._ended:
            raise Refusal(400, "damaged form: it ends before its last boundary")
        return self._form

    def _begin(self) -> None:
        self._header, self._data, self._size = {}, [], 0

    def _end_header(self) -> None:
        self._header[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._header.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise Refusal(400, "damaged form: a part has no name")
        self._field = options[b"name"].decode("utf-8", "replace")
        self._file = options.get(b"filename")
        if self._file is not None:
            if len(self._form.files) >= self._max_files:
                raise Refusal(
                    413, f"more than {self._max_files} files in a request; send fewer at once, or start a job"
                )
            if self._field != "files":
                raise Refusal(422, f"{self._field[:100]}: unknown file field; send images as 'files'")
        elif len(self._form.fields) >= _FIELDS:
            raise Refusal(413, f"more than {_FIELDS} fields in a form")

    def _take(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._file is None and self._size > _LONGEST_FIELD:
            raise Refusal(413, f"{self._field[:100]}: more than {_LONGEST_FIELD} bytes in a field")
        if self._file is not None and self._folder is not None:
            with open(self._folder / str(len(self._form.files)), "ab") as file:
                file.write(data[start:end])
        else:
            self._data.append(data[start:end])

    def _end_part(self) -> None:
        content = b"".join(self._data)
        self._data = []
        if self._file is not None:
            name = shown_name(self._file.decode("utf-8", "replace"), len(self._form.files) + 1)
            self._form.files.append(self._kept(name, content))
            return
        if self._field in self._form.fields:
            raise Refusal(422, f"{self._field[:100]}: given twice")
        try:
            self._form.fields[self._field] = content.decode("utf-8")
        except UnicodeDecodeError:
            raise Refusal(422, f"{self._field[:100]}: not text in UTF-8") from None

    def _kept(self, name: str, content: bytes) -> Sent:
        if self._folder is None:
            return Upload(name, content)
        path = self._folder / str(len(self._form.files))
        path.touch()
        return Stored(name, path)

    def _end(self) -> None:
        self._ended = True
