"""`Client`: a service started by ``anomalyclip serve``, from Python; no extra is needed for it."""

import base64
import http.client
import io
import json
import os
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload
from urllib.parse import SplitResult, quote, urlsplit

import numpy as np
from PIL import Image

from anomalyclip.errors import AnomalyCLIPError, InputError, concerning
from anomalyclip.nearest import NearestNormal
from anomalyclip.prediction import Prediction
from anomalyclip.readers import Source

_MAP: Mapping[str, str] = {"map": "npy", "map_size": "0"}


class ServiceError(AnomalyCLIPError):
    """The service has refused a request, or cannot be reached.

    Attributes
    ----------
    status : int
        HTTP status; 0 if the service cannot be reached.
    code : str
        Such as "busy" or "unusable".
    request_id : str
        The service's log has it under this id.
    """

    def __init__(
        self, message: str, *, status: int = 0, code: str = "unreachable", request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.request_id = status, code, request_id


@dataclass(frozen=True)
class RemoteModel:
    """A model of the service.

    Attributes
    ----------
    id : str
        For `Client.predict` and the others.
    about : mapping
        What the service says of it: ``backbone``, ``method``, ``references``, ``threshold``, ...
    """

    id: str
    about: Mapping[str, Any]


@dataclass(frozen=True)
class RemoteThreshold:
    """A threshold that the service has found.

    Attributes
    ----------
    score, pixel : float or None
    model : str
        Id of a model that uses it.
    about : mapping
        How many images it was made of, and the bounds of its rate of false alarms.
    """

    score: float | None
    pixel: float | None
    model: str
    about: Mapping[str, Any]


class Client:
    """Scores images with a service.

    Parameters
    ----------
    url : str
        The address that ``anomalyclip serve`` prints.
    key : str, optional
        The key in its ``--key-file``.
    timeout : float
        Seconds that an answer may take.
    patience : float
        Seconds for which a busy service (429) is asked again, at the intervals it asks for.
    context : ssl.SSLContext, optional
        For https; None: the system's certificates.

    Raises
    ------
    AnomalyCLIPError
        The address is not one of http or https, the key cannot be one, or a number of seconds is negative.

    Examples
    --------
    >>> client = Client("http://127.0.0.1:1")
    >>> client.models()
    Traceback (most recent call last):
    anomalyclip.client.ServiceError: http://127.0.0.1:1 cannot be reached (...); is `anomalyclip serve` running there?
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 120.0,
        patience: float = 0.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        if not timeout > 0 or not patience >= 0:
            raise AnomalyCLIPError(f"timeout {timeout}, patience {patience}: expected numbers of seconds")
        self._parts = _address(url)
        self.url = url.rstrip("/")
        self._timeout, self._patience = timeout, patience
        self._context = context
        self._headers = {} if key is None else {"authorization": f"Bearer {_checked(key)}"}

    @overload
    def predict(  # type: ignore[overload-overlap] # a str is a sequence too
        self,
        images: Source,
        *,
        model: str | None = ...,
        threshold: float | None = ...,
        class_name: str | None = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: Sequence[Source],
        *,
        model: str | None = ...,
        threshold: float | None = ...,
        class_name: str | None = ...,
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: Source | Sequence[Source],
        *,
        model: str | None = None,
        threshold: float | None = None,
        class_name: str | None = None,
    ) -> Prediction | list[Prediction]:
        """Score one image, or a list of them, as `Detector.predict` does.

        Parameters
        ----------
        images : path, bytes, binary file, PIL image or uint8 array, or a list or tuple of these
        model : str, optional
            Id of a model. None: the service's own.
        threshold : float, optional
            Replaces the model's.
        class_name : str, optional
            What the images show, for methods that name it.

        Returns
        -------
        Prediction or list of Prediction
            A list if `images` is one. A file that holds several images has as many predictions.

        Raises
        ------
        InputError
            An image cannot be used, or a single source holds several images.
        ServiceError
            The request was refused.
        """
        many = isinstance(images, list | tuple)
        sources: Sequence[Source] = images if many else [images]  # type: ignore[assignment,list-item]
        fields = {**_MAP, "model": model, "threshold": threshold, "class_name": class_name}
        files = [_file(source, number) for number, source in enumerate(sources, start=1)]
        content = self._send("/v1/predict", files, fields, accepted=(413, 415, 422))
        with _expected(self.url):
            found = [prediction_of(said) for said in content["predictions"]]
        if many:
            return found
        if len(found) != 1:
            raise InputError(
                f"{files[0][0]}: holds {len(found)} images; pass a list, predict([...]), to score all"
            )
        return found[0]

    def models(self) -> list[RemoteModel]:
        """Return the models that the service has, its own first."""
        content = self._json("GET", "/v1/models")
        with _expected(self.url):
            return [RemoteModel(said["id"], said) for said in content["models"]]

    def make_model(self, *, threshold: float | None = None, **spec: Any) -> RemoteModel:
        """Make a model, of fields of `DetectorSpec` that name no files.

        Parameters
        ----------
        threshold : float, optional
        **spec
            Such as ``method="words", normal=["flawless {}"], abnormal=["cracked {}"]``.
        """
        return self._model(self._json("POST", "/v1/models", {**spec, "threshold": threshold}))

    def remember(
        self, images: Sequence[Source], *, model: str | None = None, augment: bool = False
    ) -> RemoteModel:
        """Make a model that compares images with flawless ones; see `anomalyclip.fit`."""
        files = [_file(source, number) for number, source in enumerate(images, start=1)]
        return self._model(self._send("/v1/memories", files, {"model": model, "augment": int(augment)}))

    def calibrate(
        self,
        images: Sequence[Source] = (),
        *,
        model: str | None = None,
        false_alarm_rate: float = 0.01,
        false_pixel_share: float = 0.001,
    ) -> RemoteThreshold:
        """Find a threshold on normal images; see `anomalyclip.calibrate`. Without images, on the model's references."""
        fields = {
            "model": model,
            "false_alarm_rate": false_alarm_rate,
            "false_pixel_share": false_pixel_share,
        }
        files = [_file(source, number) for number, source in enumerate(images, start=1)]
        said = self._send("/v1/calibrate", files, fields)
        with _expected(self.url):
            limits = said["threshold"]
            return RemoteThreshold(limits["score"], limits["pixel"], said["model"], said)

    def forget(self, model: str) -> None:
        """Forget a model that was made here."""
        self._json("DELETE", f"/v1/models/{quote(model, safe='')}")

    def start_job(
        self, images: Sequence[Source], *, model: str | None = None, threshold: float | None = None
    ) -> "RemoteJob":
        """Let the service score many images while no request waits."""
        fields = {**_MAP, "model": model, "threshold": threshold}
        files = [_file(source, number) for number, source in enumerate(images, start=1)]
        said = self._send("/v1/jobs", files, fields)
        with _expected(self.url):
            return RemoteJob(self, said["id"])

    def _model(self, said: Any) -> RemoteModel:
        with _expected(self.url):
            return RemoteModel(said["id"], said)

    def _send(
        self,
        path: str,
        files: Sequence[tuple[str, bytes]],
        fields: Mapping[str, Any],
        accepted: tuple[int, ...] = (),
    ) -> Any:
        boundary = secrets.token_hex(16)
        given = {name: value for name, value in fields.items() if value is not None}
        body = _form(boundary, files, given)
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return _parsed(self.url, self.ask("POST", path, body, headers, accepted)[1])

    def _json(self, method: str, path: str, content: Any = None) -> Any:
        try:
            body = None if content is None else json.dumps(content, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise AnomalyCLIPError(f"a value cannot be sent as JSON ({error})") from None
        answer = self.ask(method, path, body, {"content-type": "application/json"})[1]
        return _parsed(self.url, answer) if answer else None

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        accepted: tuple[int, ...] = (),
    ) -> tuple[Mapping[str, str], bytes]:
        """Return headers (names in lower case) and body of an answer.

        Raises
        ------
        ServiceError
            The status is an error that is not `accepted` with predictions in it, or the service cannot be reached.
        """
        end = time.monotonic() + self._patience
        while True:
            status, answered, content = self._ask_once(
                method, path, body, {**self._headers, **(headers or {})}
            )
            if status < 400 or (status in accepted and b'"predictions"' in content):
                return answered, content
            after = answered.get("retry-after", "")
            wait = float(after) if after.isdecimal() else 1.0  # a proxy may give a date
            if status != 429 or time.monotonic() + wait > end:
                raise _refused(status, content)
            time.sleep(wait)

    def _ask_once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        host, port = str(self._parts.hostname), self._parts.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._context)
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=self._timeout)
        )
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body, dict(headers))
            response = connection.getresponse()
            answered = {name.lower(): value for name, value in response.getheaders()}
            return response.status, answered, response.read()
        except (
            OSError,
            UnicodeError,
            http.client.HTTPException,
        ) as error:  # a name may have no form for the network
            raise ServiceError(
                f"{self.url} cannot be reached ({_line(error)}); is `anomalyclip serve` running there?"
            ) from None
        finally:
            connection.close()


@dataclass(frozen=True)
class RemoteJob:
    """A job of the service.

    Parameters
    ----------
    client : Client
    id : str
    """

    client: Client
    id: str

    def status(self) -> Mapping[str, Any]:
        """Return its state (queued, running, done, failed) and progress."""
        answer: Mapping[str, Any] = _parsed(self.client.url, self.client.ask("GET", f"/v1/jobs/{self.id}")[1])
        return answer

    def results(self, *, interval: float = 0.2) -> Iterator[Prediction | InputError]:
        """Yield a prediction for each image in order, or the error of one that cannot be used, until the job is done.

        Parameters
        ----------
        interval : float
            Seconds between two questions while nothing new is there.

        Raises
        ------
        ServiceError
            The job has failed or is not there any more.
        """
        offset = 0
        while True:
            headers, body = self.client.ask("GET", f"/v1/jobs/{self.id}/results?offset={offset}")
            for line in body.splitlines():
                with _expected(self.client.url):
                    said = json.loads(line)
                    found = prediction_of(said) if said["error"] is None else InputError(said["error"])
                yield found
            if "x-next-offset" not in headers:
                break
            with _expected(self.client.url):
                after = int(headers["x-next-offset"])
            if after == offset:
                time.sleep(interval)
            offset = after
        status = self.status()
        with _expected(self.client.url):
            if status["state"] == "failed":
                raise ServiceError(
                    f"job {self.id} has failed: {status['error']}", status=500, code="internal"
                )

    def cancel(self) -> None:
        """Cancel it, and forget its results."""
        self.client.ask("DELETE", f"/v1/jobs/{self.id}")


def prediction_of(said: Mapping[str, Any]) -> Prediction:
    """Return the prediction that an entry of an answer describes; it needs its map, as npy.

    Raises
    ------
    InputError
        The image cannot be used.
    """
    if said["error"] is not None:
        raise InputError(said["error"])
    content = io.BytesIO(base64.b64decode(said["map"]["data"]))
    return Prediction(
        pred_score=said["pred_score"],
        anomaly_map=np.load(content, allow_pickle=False),
        image_size=tuple(said["image_size"]),
        image_path=said["name"] if said["index"] == 1 else f"{said['name']}#{said['index']}",
        threshold=said["threshold"],
        pixel_threshold=said["pixel_threshold"],
        value_range=said.get("value_range"),
        time=said["time"],
        nearest=NearestNormal.of(said),
    )


def _address(url: str) -> SplitResult:
    """Return the parts of a service's address."""
    expected = "expected the address of a service, such as http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        if parts.username is not None:  # it is not shown: it may be a secret
            raise AnomalyCLIPError(f"the address has a user in it; {expected}, and the key as key='...'")
        if (
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            and url.isprintable()
            and " " not in url
        ):
            return parts
    except (AttributeError, TypeError, ValueError):  # the port is no number, for example
        pass
    raise AnomalyCLIPError(f"{url}: {expected}")


def _checked(key: Any) -> str:
    """Return a key that can be sent; an error does not show it."""
    if not isinstance(key, str) or not key.isascii() or not key.isprintable() or len(key.split()) != 1:
        raise AnomalyCLIPError(
            "the key cannot be one: expected ASCII characters without spaces and line breaks; for a key that is read "
            "from a file, use .strip()"
        )
    return key.strip()


@contextmanager
def _expected(url: str) -> Iterator[None]:
    """Turn errors of reading an answer into one that says that it is not this service's.

    Raises
    ------
    ServiceError
        In place of what a missing field or a damaged map raises.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise ServiceError(
            f"{url} answers as no service of this kind does ({type(error).__name__}: {error}); is `anomalyclip serve` "
            "running there?",
            code="other",
        ) from None


def _parsed(url: str, content: bytes) -> Any:
    """Return the JSON of an answer."""
    with _expected(url):
        return json.loads(content)


def _line(error: Exception) -> str:
    """Return an error's message as one line; it may quote what came instead of an answer."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _refused(status: int, content: bytes) -> ServiceError:
    try:
        said = json.loads(content)["error"]
        return ServiceError(said["message"], status=status, code=said["code"], request_id=said["request_id"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(
            f"an answer with status {status} that is not this service's", status=status, code="other"
        )


def _file(source: Source, number: int) -> tuple[str, bytes]:
    """Return the name and content of a file to send."""
    if isinstance(source, bytes):
        return f"image-{number}", source
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            return os.path.basename(name), Path(source).read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: cannot be read ({getattr(error, 'strerror', error)})") from None
    name = f"image-{number}"
    with concerning(name, "cannot be sent"):
        if isinstance(source, Image.Image | np.ndarray):
            file = io.BytesIO()
            image = source if isinstance(source, Image.Image) else Image.fromarray(source)
            image.save(file, "PNG", compress_level=1)
            return f"{name}.png", file.getvalue()
        if not hasattr(source, "read"):
            raise InputError(
                f"{name}: expected a path, bytes, a file, a PIL image or an array, not {source!r}"
            )
        content = source.read()
        if isinstance(content, str):
            raise InputError(f"{name}: the file is open as text; open it with mode 'rb'")
        return os.path.basename(str(getattr(source, "name", name))), bytes(content)


def _form(boundary: str, files: Sequence[tuple[str, bytes]], fields: Mapping[str, Any]) -> bytes:
    """Return a form (multipart/form-data)."""
    parts: list[bytes] = []
    for name, value in fields.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        parts += [head.encode(), str(value).encode(errors="replace"), b"\r\n"]
    for name, content in files:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ").replace("\n", " ")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{quoted}"\r\n\r\n'
        parts += [head.encode(errors="replace"), content, b"\r\n"]  # names of files need not be text
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])
