"""Callers that are slow, vanish, lie, or ask for too much: the service stays up and answers others."""

import contextlib
import datetime
import io
import ipaddress
import json
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from anomalyclip import AnomalyCLIPError, DetectorSpec
from anomalyclip.client import Client, ServiceError
from anomalyclip.serve.settings import ServeSettings
from tests.serving import BOUNDARY, CRACK, GOOD, form, part, service

pytestmark = pytest.mark.slow

MANY = form([(f"{number}.jpg", CRACK.read_bytes()) for number in range(90)])
KEY = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    given = ("--queue", 1, "--receive-limit", 1.5, "--max-request", 8, "--max-unpacked", 50, "--max-held", 16)
    with service(tmp_path_factory.mktemp("serve"), *given) as found:
        yield found


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locked")
    (folder / "key").write_text(f"{KEY}\n")
    with service(folder, "--key-file", folder / "key", "--time-limit", 0.2, "--models", 0) as found:
        yield found


@pytest.fixture(autouse=True)
def others_are_answered(request):
    """Whatever a test has done, the next caller is answered."""
    yield
    if "running" in request.fixturenames:
        assert request.getfixturevalue("running").predict(GOOD).status == 200


def head(length: int | None, path: str = "/v1/predict", more: str = "") -> bytes:
    how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{how}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n{more}\r\n"
    ).encode()


def answer_on(connection: socket.socket) -> tuple[int, dict]:
    """Status and JSON of what comes, until the service closes the connection."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    start, _, body = received.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)


def measure(running, name: str, **headers: str) -> float:
    text = running.get("/metrics", **headers).body.decode()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


def wait_for(running, name: str, value: float) -> None:
    """Ask until a measure has a value; the test's own limit ends it otherwise."""
    while measure(running, name) != value:
        pass


def test_a_caller_that_is_killed_in_the_middle_of_an_upload_leaves_nothing_behind(running):
    program = f"""
import socket, sys
connection = socket.create_connection(("{running.host}", {running.port}))
connection.sendall({head(5_000_000)!r} + {part('name="files"; filename="a.jpg"', b"x" * 100_000)!r})
print("sent", flush=True)
sys.stdin.read()
"""
    caller = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"sent\n"
    while measure(running, "anomalyclip_held_bytes") < 100_000:
        pass
    caller.send_signal(signal.SIGKILL)
    caller.communicate()
    wait_for(running, "anomalyclip_held_bytes", 0)


def test_a_slow_sender_is_cut_off(running):
    with running.connect() as connection:
        connection.sendall(head(1000) + b"--" + BOUNDARY.encode())
        status, said = answer_on(connection)
    assert status == 408
    assert said["error"]["code"] == "timeout"


def holds(running, port: int) -> bool:
    """Whether the service still has a connection that comes from this port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = f":{running.port:04X}", f":{port:04X}"
    return any((row[1][-5:], row[2][-5:]) == ends and row[9] != "0" for row in rows)


def test_half_a_second_request_and_an_answer_nobody_reads_do_not_stay(running):
    """Both are closed while others are answered; the reader finds less than it was promised."""
    file = io.BytesIO()
    Image.new("L", (1200, 1200)).save(file, "PNG")
    body = form([("a.png", file.getvalue())], map="npy")
    with running.connect() as half, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(60)
        deaf.connect((running.host, running.port))
        deaf.sendall(head(len(body)) + body)
        half.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert half.recv(65536).startswith(b"HTTP/1.1 200")
        half.sendall(b"GET /v2/hea")
        assert holds(running, deaf.getsockname()[1])
        while half.recv(65536):
            pass  # the rest of the answer, and then the end
        while holds(running, deaf.getsockname()[1]):
            pass
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := deaf.recv(1 << 20):
                received += len(chunk)
    assert 0 < received < 4 * 1200 * 1200


def test_a_thousand_idle_connections_hold_up_nobody(running):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))
    idle = [running.connect() for _ in range(1000)]
    assert running.predict(GOOD).status == 200
    for connection in idle:
        connection.close()


def test_ten_gigabytes_are_refused_before_they_are_sent(running):
    with running.connect() as connection:
        connection.sendall(head(10_000_000_000, more="Connection: close\r\n"))
        status, said = answer_on(connection)
    assert status == 413
    assert said["error"]["message"].startswith("the request has more than 8000000 bytes")


def test_ten_gigabytes_in_chunks_are_refused_when_they_pass_the_limit(running):
    chunk = b"%x\r\n" % 1_000_000 + b"x" * 1_000_000 + b"\r\n"
    sent = 0
    with running.connect() as connection:
        begun = part('name="files"; filename="a"', b"")
        connection.sendall(head(None) + b"%x\r\n" % len(begun) + begun + b"\r\n")
        connection.setblocking(False)
        received = b""
        while not received.endswith(b"}}"):
            try:
                received += connection.recv(65536)
            except BlockingIOError:
                connection.setblocking(True)
                connection.sendall(chunk)
                connection.setblocking(False)
                sent += len(chunk)
            assert sent < 100_000_000
    assert received.split()[1] == b"413"


def test_a_zip_bomb_is_refused_before_it_explodes(running):
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros.png", "w") as member,
    ):
        for _ in range(400):
            member.write(bytes(1_000_000))
    before = peak_memory(running)
    answer = running.send("/v1/predict", [("bomb.zip", packed.getvalue())])
    assert answer.status == 413
    assert "more than 50000000 bytes when it is unpacked" in answer.error["message"]
    assert peak_memory(running) - before < 150_000_000


def test_an_image_of_60_000_x_60_000_pixels_is_refused_by_its_header(running):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    answer = running.send("/v1/predict", [("wide.png", b"\x89PNG\r\n\x1a\n" + data)])
    assert answer.status == 413
    assert answer.error["message"].startswith("wide.png: image too large")


def peak_memory(running) -> int:
    """Bytes that the service has had in memory at most."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\a.png", "a.png"),
        ("<script>alert(1)<\\/script>.png", "script>.png"),
        ("a\x00b\x1b[2J.png", "a\ufffdb\ufffd[2J.png"),
        ("x" * 10_000, "x" * 255),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        ("..", "image-1"),
    ],
)
def test_a_name_is_only_ever_shown_and_opens_nothing(running, name, shown):
    images = [{"name": name, "data": ""}]
    answer = running.post("/v1/predict", {"images": images})
    assert answer.status == 422
    assert answer.json["predictions"][0]["name"] == shown
    assert answer.headers["content-type"] == "application/json"


def test_a_full_queue_says_when_to_come_back_and_whoever_leaves_makes_room(running):
    done = measure(running, "anomalyclip_images_total")
    with running.connect() as connection:
        connection.sendall(head(len(MANY)) + MANY)
        wait_for(running, "anomalyclip_waiting_requests", 1)
        refused = running.predict(GOOD)
        assert refused.status == 429
        assert refused.error["code"] == "busy"
        assert int(refused.headers["retry-after"]) >= 1
    wait_for(running, "anomalyclip_waiting_requests", 0)
    assert measure(running, "anomalyclip_images_total") - done < 90
    assert measure(running, "anomalyclip_held_bytes") == 0


def test_a_request_that_takes_too_long_leaves_the_queue(locked):
    key = {"authorization": f"Bearer {KEY}", "content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = locked.ask("POST", "/v1/predict", MANY, key)
    assert answer.status == 503
    assert answer.error["message"].startswith("no answer within 0.2 seconds")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "sent",
    ["", "Bearer", "Bearer wrong", f"Basic {KEY}", f"bearer {KEY}x", "Bearer \xff\xfe", "Basic !"],
)
def test_without_the_key_nothing_is_answered(locked, sent):
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v2/models/default", "/nothing"):
        refused = locked.get(path, **({"authorization": sent} if sent else {}))
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
    assert KEY not in locked.log.read_text()


def test_with_the_key_everything_is_and_whether_it_runs_is_said_without(locked):
    assert locked.get("/v1/models", authorization=f"Bearer {KEY}").status == 200
    basic = "Basic bGFiZWw6MDEyMzQ1Njc4OWFiY2RlZjAxMjM="  # label:KEY, as Label Studio sends it
    assert locked.get("/v1/models", authorization=basic).status == 200
    assert locked.get("/v2/health/ready").json == {"ready": True}
    assert locked.get("/health").json["status"] == "UP"


def test_jobs_are_given_up_at_sigterm_their_files_are_deleted_and_the_log_says_so(tmp_path):
    (tmp_path / "jobs").mkdir()
    with service(tmp_path, "--jobs-folder", tmp_path / "jobs", "--batch-size", 1) as running:
        begun = running.ask(
            "POST", "/v1/jobs", MANY, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        )
        assert begun.status == 202
        assert len(list((tmp_path / "jobs").rglob("[0-9]*"))) >= 90
        assert running.stop() == 0
        assert list((tmp_path / "jobs").iterdir()) == []
        (given_up,) = [line for line in running.logged() if line["event"] == "a job was given up"]
    assert given_up["id"] == begun.json["id"]
    assert given_up["images_done"] < 90


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for this machine, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="needs cryptography, which moto of [dev] brings")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, folder = ec.generate_private_key(ec.SECP256R1()), tmp_path_factory.mktemp("tls")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anomalyclip's tests")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "cert.pem", folder / "key.pem"


def test_over_https_whoever_trusts_the_certificate_is_answered(tmp_path, certificate, monkeypatch):
    expected = DetectorSpec("micro").load().predict(CRACK).pred_score
    with service(tmp_path, "--tls-certificate", certificate[0], "--tls-key", certificate[1]) as running:
        address = f"https://127.0.0.1:{running.port}"
        assert running.said[0].split()[1] == f"{address}/"
        with pytest.raises(ServiceError, match="CERTIFICATE_VERIFY_FAILED"):
            Client(address).models()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert Client(address).predict(CRACK).pred_score == pytest.approx(expected, abs=1e-5)
        with running.connect() as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP" not in plain.recv(1000)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(certificate[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with running.connect() as plain, pytest.raises(ssl.SSLError):
            old.wrap_socket(plain, server_hostname="127.0.0.1")
        assert Client(address).predict(GOOD).image_size == (320, 320)


def test_a_certificate_that_does_not_belong_to_the_key_is_refused_before_the_model_is_loaded(
    tmp_path, certificate
):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = tmp_path / "other.pem"
    other.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for key in (other, tmp_path / "nothing.pem", certificate[0]):
        with pytest.raises(AnomalyCLIPError, match=f"with --tls-key {key} cannot be used"):
            ServeSettings(tls_certificate=certificate[0], tls_key=key).check_tls()
    ServeSettings(tls_certificate=certificate[0], tls_key=certificate[1]).check_tls()


def test_stopped_by_sigterm_it_finishes_what_it_has_and_takes_nothing_new(tmp_path):
    with service(tmp_path) as running:
        with running.connect() as connection:
            connection.sendall(head(len(MANY), more="Connection: close\r\n") + MANY)
            wait_for(running, "anomalyclip_waiting_requests", 1)
            running.process.send_signal(signal.SIGTERM)
            status, said = answer_on(connection)
        assert status == 200
        assert len(said["predictions"]) == 90
        assert running.process.wait(timeout=60) == 0
        with pytest.raises(ConnectionRefusedError):
            running.connect()


IDLE = """
import gc
from anomalyclip import DetectorSpec
from anomalyclip.serve.running import bound, run
from anomalyclip.serve.settings import ServeSettings

settings = ServeSettings(port=0)
listening = bound(settings)
run(DetectorSpec("micro").load(), settings, listening, lambda: print(listening.getsockname()[1], flush=True))
print("left to look through:", len(gc.get_objects()) < gc.get_freeze_count() / 10)
"""


def test_stopped_while_idle_it_closes_what_is_open_and_does_not_look_through_all_of_pytorch_at_the_end():
    """Nobody waits for a caller that keeps its connection, has said nothing, or is in the middle of a head."""
    with subprocess.Popen([sys.executable, "-c", IDLE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = "127.0.0.1", int(process.stdout.readline())
        kept, silent, half = (socket.create_connection(address, timeout=60) for _ in range(3))
        kept.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        half.sendall(b"GET /v2/hea")
        process.send_signal(signal.SIGTERM)
        for connection in (kept, silent, half):
            with connection:
                while connection.recv(65536):
                    pass  # the rest of an answer, and then the end
        assert process.stdout.read() == "left to look through: True\n"
        assert process.wait(timeout=60) == 0
