"""What every request passes: who may ask, from where, under which name; and what every answer carries."""

import asyncio
import base64
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from anomalyclip.serve.measures import Measures
from anomalyclip.serve.refusals import Refusal, without_frames

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

log = logging.getLogger("anomalyclip.serve")

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src "
    "'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
"""Headers of every answer."""

OPEN = ("/", "/favicon.ico", "/health", "/v2/health/live", "/v2/health/ready")
OPEN_FOLDER = "/page/"
"""What is answered without the key: the page, which asks for it, and whether the service is up."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINGER, _LINGER_BYTES = 2.0, 64_000_000
GONE = 499
"""Status in logs and measures of a caller that went away; nobody receives it."""


class Guard:
    """Wraps the service; see this module.

    Parameters
    ----------
    app : ASGI application
    key : bytes, optional
        What callers have to send. None: anybody may ask who reaches the address.
    hosts : collection of str
        Names by which the service may be addressed, besides numbers and localhost. A page of another site that has its
        name point to this machine (DNS rebinding) uses its own name, and is refused.
    measures : Measures
    """

    def __init__(self, app: App, *, key: bytes | None, hosts: Collection[str], measures: Measures) -> None:
        self._app, self._key, self._measures = app, key, measures
        self._hosts = {host.lower() for host in hosts} | {"localhost"}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _Headers(scope["headers"])
        asked = headers["x-request-id"]
        id = asked if _ID.fullmatch(asked) else secrets.token_hex(8)
        scope["request_id"] = id
        exchange = _Exchange(receive, send, id, path=scope["path"], expects=bool(headers["expect"]))
        started = time.perf_counter()
        try:
            self._check(scope, headers)
            await self._app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except Exception as error:
            log.exception("unforeseen error", extra={"fields": {"id": id}})
            without_frames(error)
            if not exchange.status:
                await exchange.refuse(Refusal(500, f"an error nobody foresaw; the log has it under {id}"))
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            status = exchange.status or GONE
            self._measures.answered(route, status, seconds)
            log.info(
                "request",
                extra={
                    "fields": {
                        "id": id,
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 4),
                        "bytes_in": exchange.received,
                    }
                },
            )

    def _check(self, scope: MutableMapping[str, Any], headers: "_Headers") -> None:
        host = headers["host"]
        if not self._may_be_called(host):
            raise Refusal(421, "this service does not answer under that name; see --allowed-host")
        origin = headers["origin"]
        if origin and origin.partition("://")[2] != host:
            raise Refusal(403, "pages of other sites may not use this service")
        if headers["sec-fetch-site"] == "cross-site" and scope["path"] not in OPEN:
            raise Refusal(403, "pages of other sites may not use this service")
        if self._key is None or scope["path"] in OPEN or scope["path"].startswith(OPEN_FOLDER):
            return
        if not hmac.compare_digest(_key_in(headers["authorization"]), self._key):
            raise Refusal(401, "send the key of this service: 'Authorization: Bearer KEY'")

    def _may_be_called(self, host: str) -> bool:
        """Return whether a Host header is an address in numbers, or one of the known names."""
        name = re.sub(r":\d+$", "", host.lower())
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _key_in(authorization: str) -> bytes:
    """Return the key that a caller sends: as a bearer, or as the password of any user (as Label Studio does)."""
    kind, _, sent = authorization.partition(" ")
    if kind.lower() == "bearer":
        return sent.strip().encode("latin-1")
    if kind.lower() == "basic":
        try:
            return base64.b64decode(sent, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


class _Headers:
    """The first value of each header as text; an empty one where there is none."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        wanted = name.encode("ascii")
        return next((value.decode("latin-1") for key, value in self._raw if key == wanted), "")


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, receive: Receive, send: Send, id: str, *, path: str, expects: bool) -> None:
        self._receive, self._send = receive, send
        self._id, self._path, self._expects = id, path, expects
        self._complete = False
        self.received = 0
        self.status = 0

    async def receive(self) -> Message:
        """Receive from the caller."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send to the caller, with the headers of every answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            raw = message.setdefault("headers", [])
            present = {key for key, _ in raw}
            more = {**HEADERS, "x-request-id": self._id}
            raw += [
                (key.encode(), value.encode()) for key, value in more.items() if key.encode() not in present
            ]
            if self._is_cut_off:
                raw.append((b"connection", b"close"))
        elif self._is_cut_off and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error."""
        body = json.dumps(refusal.content(self._id, self._path)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers()}
        raw = [(key.encode(), value.encode()) for key, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    @property
    def _is_cut_off(self) -> bool:
        """Whether the answer comes before the request has arrived."""
        return self.status >= 400 and not self._complete and not (self._expects and not self.received)

    async def _linger(self) -> None:
        """Take some more of the request: whoever closes a connection at once may take back the answer with it."""
        end = asyncio.get_running_loop().time() + _LINGER
        most = self.received + _LINGER_BYTES
        try:
            while not self._complete and self.received < most:
                left = end - asyncio.get_running_loop().time()
                await asyncio.wait_for(self.receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            pass
