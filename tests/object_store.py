"""A real object store on loopback (moto's server), and a proxy before it that cuts connections."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Thread
from urllib.request import Request, urlopen

import fsspec
import pytest

from anomalyclip.addresses import stores

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Give the address of a server that speaks S3, which the environment says is the one to ask; it is empty."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    try:
        # All of moto's servers in a process share their buckets: what an earlier one was given would be there.
        urlopen(Request(f"{url}/moto-api/reset", method="POST"), timeout=60).close()
        with reached(url):
            yield url
    finally:
        server.stop()


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """Have the environment say where the store is, and forget the connections to others."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL_S3": url}).items():
            patch.setenv(name, value)
        patch.setattr(stores, "of_process", lru_cache(stores.of_process.__wrapped__))
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@dataclass
class Proxy:
    """Between a client and a server: it cuts connections, and refuses them."""

    url: str = ""
    cuts: list[int] = field(default_factory=list)
    """Bytes of answers after which each of the next connections that gets so many is cut."""
    down: bool = False
    """Every connection is closed at once."""
    limit: int | None = None
    """Bytes of requests after which the line is dead for good."""
    passed: int = 0
    """Bytes of requests so far."""
    cut: int = 0
    """Connections that were cut."""


def _forward(client: socket.socket, target: tuple[str, int], proxy: Proxy) -> None:
    with client, socket.create_connection(target) as server:
        asked = Thread(target=_ask, args=(client, server, proxy), daemon=True)
        asked.start()
        sent = 0
        with contextlib.suppress(OSError):
            while content := server.recv(1 << 14):
                if proxy.down:
                    break
                if proxy.cuts and sent + len(content) > proxy.cuts[0]:
                    client.sendall(content[: proxy.cuts.pop(0) - sent])
                    proxy.cut += 1
                    break
                client.sendall(content)
                sent += len(content)
        for side in (client, server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        asked.join()


def _ask(client: socket.socket, server: socket.socket, proxy: Proxy) -> None:
    with contextlib.suppress(OSError):
        while content := client.recv(1 << 12):
            proxy.passed += len(content)
            if proxy.limit is not None and proxy.passed > proxy.limit:
                proxy.down = True
                proxy.cut += 1
                client.shutdown(socket.SHUT_RDWR)
                break
            server.sendall(content)
        server.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxy_of(url: str) -> Iterator[Proxy]:
    """Give a proxy of a server."""
    host, _, port = url.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                if proxy.down:
                    client.close()
                    continue
                Thread(target=_forward, args=(client, (host, int(port)), proxy), daemon=True).start()

    accepting = Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
