"""Running the service: a socket, uvicorn, and logs as JSON lines."""

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.serve.app import build
from anomalyclip.serve.settings import ServeSettings

_PATIENCE = 20.0
"""Seconds after which a connection is looked at again; at the second look it must have moved on."""

_BACKLOG = 2048

_HAND_OVER = 0.0005
"""Seconds after which a thread that computes in Python lets others do so (Python's default is 0.005): the model waits
for that after each of its hundreds of steps."""


def bound(settings: ServeSettings) -> socket.socket:
    """Return the socket that the service will listen on.

    Raises
    ------
    AnomalyCLIPError
        The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named, for asyncio sends the parts of an answer without delay only where it is.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
    except OSError as error:
        found.close()
        raise AnomalyCLIPError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); choose another with --port"
        ) from None
    found.set_inheritable(True)
    return found


def address(listening: socket.socket, settings: ServeSettings) -> str:
    """Return the address that callers use."""
    port = listening.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'http' if settings.tls_key is None else 'https'}://{host}:{port}/"


def run(
    detector: Detector, settings: ServeSettings, listening: socket.socket, ready: Callable[[], None]
) -> None:
    """Answer requests until SIGTERM or Ctrl-C: then those that are here are finished, and no others are taken.

    Parameters
    ----------
    detector : Detector
    settings : ServeSettings
    listening : socket
        See `bound`.
    ready : callable
        Called when the service listens and its model is warm.
    """
    sys.setswitchinterval(_HAND_OVER)
    _more_connections()
    _log_as_json()
    for sent in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # uvicorn raises them again when all is finished: that is the end
        signal.signal(sent, lambda *_: None)
    server = _Server(
        uvicorn.Config(
            build(detector, settings),
            http=_Protocol,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(settings.time_limit) + 1,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        ),
        ready,
    )
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # All that is here stays: Python need not look through it for cycles again and again, nor at the end, which
            # takes seconds.
            gc.freeze()
            self._ready()


class _Protocol(H11Protocol):
    """Closes connections that send no request or take no answer: it looks again and again at what has changed."""

    _look_again: asyncio.TimerHandle
    _was_idle, _unsent = True, 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._look_again = self.loop.call_later(_PATIENCE, self._look, self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_again.cancel()
        super().connection_lost(exc)

    def _look(self, last: Any) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        if self.cycle is last:
            if 0 < self._unsent <= unsent:
                self.transport.abort()
                return
            if is_idle and self._was_idle:
                self.transport.close()
        self._was_idle, self._unsent = is_idle, unsent
        self._look_again = self.loop.call_later(_PATIENCE, self._look, self.cycle)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _log_as_json() -> None:
    """Write all logs as JSON lines to standard error, without the contents of requests."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("anomalyclip.serve").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes what callers send
    warnings.simplefilter("ignore")  # they name callers' files


def _more_connections() -> None:
    """Raise the number of files that may be open to what the system allows: each connection is one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
