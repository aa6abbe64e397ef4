"""What the client says of addresses, keys, sources and answers that cannot be used; no service is needed for it."""

import json
import ssl
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest

from anomalyclip import AnomalyCLIPError, InputError
from anomalyclip.client import Client, RemoteJob, ServiceError

NOBODY = "http://127.0.0.1:1"


@contextmanager
def answering(body: bytes, status: int = 200, **headers: str):
    """The address of something that gives every request this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_DELETE = do_POST

        def log_message(self, *args) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "key", ["s3cret-s3cret\nnewline", "s3cret-s3cret\n", "s3cret s3cret", "s3cretß", "", b"s3cret"]
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key):
    with pytest.raises(AnomalyCLIPError, match="the key cannot be one: expected ASCII characters") as caught:
        Client(NOBODY, key=key)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://localhost",
            "localhost:8000",
            "http://",
            "http://[::1",
            "http://localhost:port",
            "http://localhost:0",
        ),
        *(
            "http://localhost:99999",
            "http://local host",
            "http://localhost\n",
            "",
            None,
            8000,
            b"http://localhost",
        ),
    ],
)
def test_what_is_no_address_of_a_service_is_refused_by_name(url):
    with pytest.raises(
        AnomalyCLIPError, match="expected the address of a service, such as http://127"
    ) as caught:
        Client(url)
    assert str(caught.value).startswith(f"{url}: ")


def test_an_address_with_a_user_is_refused_without_showing_the_password():
    with pytest.raises(AnomalyCLIPError, match=r"the key as key='\.\.\.'") as caught:
        Client("http://user:s3cret@localhost:8000")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", [NOBODY, "http://nowhere.invalid", f"http://{'a' * 70}.example", f"{NOBODY}/ä"]
)
def test_a_service_that_cannot_be_reached_is_named(url):
    with pytest.raises(ServiceError, match="is `anomalyclip serve` running there") as caught:
        Client(url).models()
    assert str(caught.value).startswith(f"{url} cannot be reached (")
    assert (caught.value.status, caught.value.code) == (0, "unreachable")


def test_https_where_only_http_is_spoken_is_said():
    with answering(b"{}") as url, pytest.raises(ServiceError, match=r"cannot be reached \(.*SSL"):
        Client(url.replace("http", "https"), context=ssl.create_default_context()).models()


@pytest.mark.parametrize(
    "body", [b"<html>", b"", b"\xff", b"[]", b"{}", b"null", b'{"predictions": [{"error": null}]}']
)
def test_an_answer_of_something_else_is_said_whatever_was_asked(body):
    with answering(body) as url:
        client = Client(url)
        for asked in (
            client.models,
            lambda: client.predict(b"x"),
            lambda: client.remember([b"x"]),
            client.calibrate,
            lambda: client.make_model(method="words"),
            lambda: client.start_job([b"x"]),
        ):
            with pytest.raises(
                ServiceError, match=f"^{url} answers as no service of this kind does"
            ) as caught:
                asked()
            assert caught.value.code == "other"


def test_results_of_a_job_that_are_something_else_are_said():
    entry = json.dumps({"error": None, "map": {"data": "AAAA"}}).encode()
    for body, headers in ((b"<html>", {}), (b"{}", {}), (entry, {}), (b"", {"x_next_offset": "x"})):
        with (
            answering(body, **headers) as url,
            pytest.raises(ServiceError, match="answers as no service of this kind"),
        ):
            list(RemoteJob(Client(url), "j-1").results())


def test_an_error_page_of_a_proxy_is_an_error_with_its_status():
    with answering(b"<html>", 502) as url, pytest.raises(ServiceError, match="status 502") as caught:
        Client(url).models()
    assert caught.value.status == 502


def test_a_busy_proxy_may_say_when_to_come_back_with_a_date():
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    with answering(b"", 429, retry_after=date) as url, pytest.raises(ServiceError, match="status 429"):
        Client(url, patience=0.5).models()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "image-1: expected a path, bytes, a file, a PIL image or an array, not 3"),
        ("a\0b.png", "a\0b.png: cannot be read"),
        (np.zeros((4, 4, 3)), "image-1: cannot be sent: Cannot handle this data type"),
    ],
)
def test_a_source_that_cannot_be_sent_is_named(source, message):
    with pytest.raises(InputError) as caught:
        Client(NOBODY).predict([source])
    assert str(caught.value).startswith(message)


def test_a_file_that_is_open_as_text_is_said():
    with open(__file__) as file, pytest.raises(InputError, match="open it with mode 'rb'"):
        Client(NOBODY).predict(file)


def test_values_that_json_does_not_have_are_said():
    for value in ({1}, float("nan")):
        with pytest.raises(AnomalyCLIPError, match="a value cannot be sent as JSON"):
            Client(NOBODY).make_model(sigma=value)


@pytest.mark.parametrize("seconds", [{"timeout": 0}, {"timeout": -1}, {"patience": float("nan")}])
def test_seconds_that_are_none_are_refused(seconds):
    with pytest.raises(AnomalyCLIPError, match="expected numbers of seconds"):
        Client(NOBODY, **seconds)
