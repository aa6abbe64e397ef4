"""A real HTTP server on loopback that serves files, and can misbehave in the ways that servers do."""

import contextlib
import hashlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


@dataclass
class Files:
    """What is served, how, and what was asked."""

    url: str = ""
    content: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """How many bytes to send before the connection is cut; one for each of the next requests."""
    fail: list[int] = field(default_factory=list)
    """Statuses to answer the next requests with."""
    refused: dict[str, int] = field(default_factory=dict)
    """Statuses to answer all requests for a path with."""
    length: str | None = None
    """Instead of the true Content-Length."""
    location: str | None = None
    """Refer every request to this address."""
    etag: str | None = None
    """Instead of the SHA-256 of the content."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path, Range header."""

    @property
    def gets(self) -> list[str | None]:
        return [asked for method, _, asked in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    files: Files

    def do_GET(self) -> None:
        files = self.files
        asked = self.headers.get("Range")
        files.requests.append((self.command, self.path, asked))
        if files.location is not None:
            self.send_response(302)
            self.send_header("Location", files.location)
            self.end_headers()
            return
        if self.path in files.refused:
            self.send_error(files.refused[self.path])
            return
        body = files.content.get(self.path)
        if body is None or files.fail:
            self.send_error(files.fail.pop(0) if files.fail else 404)
            return
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and files.ranges else 0
        if start >= len(body) > 0:
            self.send_error(416)
            return
        self.send_response(206 if asked and files.ranges else 200)
        if asked and files.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", files.length or str(len(body) - start))
        etag = files.etag or hashlib.sha256(body).hexdigest()  # as the hub does for large files
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            stop = start + files.cuts.pop(0) if files.cuts else len(body)
            self.wfile.write(body[start:stop])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def _secured(plain: socket.socket, certificate: Path) -> ssl.SSLSocket:
    """Return a socket with a certificate that only its own file vouches for."""
    key = certificate.with_suffix(".key")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1 "
        "-addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)


@contextlib.contextmanager
def serve(certificate: Path | None = None) -> Iterator[Files]:
    """Give a server; with a path for its certificate, which is written there, it speaks https."""
    files = Files()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfFiles", (Handler,), {"files": files}))
    files.url = f"http{'' if certificate is None else 's'}://127.0.0.1:{server.server_port}"
    if certificate is not None:
        server.socket = _secured(server.socket, certificate)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
