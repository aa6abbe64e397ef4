"""A real service in a process of its own, and how tests talk to it."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from anomalyclip.demo import PICTURES

CRACK, GOOD, STAIN = (PICTURES / name for name in ("slate_crack.jpg", "slate_good.jpg", "corduroy_stain.jpg"))
BOUNDARY = "8c1f0e"


@dataclass
class Answer:
    """Status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


@dataclass
class Running:
    """A service that runs."""

    process: "subprocess.Popen[str]"
    host: str
    port: int
    said: list[str]
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, content: Any) -> Answer:
        return self.ask("POST", path, json.dumps(content).encode(), {"content-type": "application/json"})

    def send(self, path: str, files: list[tuple[str, bytes]], **fields: str) -> Answer:
        return self.ask("POST", path, form(files, **fields), FORM)

    def predict(self, *files: Path, **fields: str) -> Answer:
        return self.send("/v1/predict", [(file.name, file.read_bytes()) for file in files], **fields)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(files: list[tuple[str, bytes]], **fields: str) -> bytes:
    """A form with these files and fields."""
    parts = [part(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts += [part(f'name="files"; filename="{name}"', content) for name, content in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def part(about: str, content: bytes) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {about}\r\n\r\n"
    return head.encode() + content + b"\r\n"


@contextlib.contextmanager
def service(folder: Path, *options: object) -> Iterator[Running]:
    """Start `anomalyclip serve` with micro on a free port; it is stopped at the end if it still runs."""
    pytest.importorskip("fastapi", reason="needs the extra [serve]")
    log = folder / "log.jsonl"
    words = ["serve", "--backbone", "micro", "--port", "0", *options]
    with open(log, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "anomalyclip", *map(str, words)],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        said = [process.stdout.readline().strip() for _ in range(3)]
        assert said[0].startswith("address"), log.read_text()
        address = said[0].split()[1].rstrip("/").rpartition("/")[2]
        host, _, port = address.rpartition(":")
        yield Running(process, host.strip("[]"), int(port), said, log)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)
        process.stdout.close()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that several modules share; what a test makes in it, it also takes away."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "jobs").mkdir()
    given = ("--threshold", "0.5", "--models", 2, "--jobs", 1, "--jobs-folder", folder / "jobs")
    with service(folder, *given) as found:
        yield found
