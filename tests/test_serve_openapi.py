"""The document at /openapi.json: it is valid, and answers are what it says, errors too."""

import asyncio
import json
import threading

import pytest
from PIL import Image

from anomalyclip import DetectorSpec
from anomalyclip.serve.wanted import FIELDS
from tests.asgi import answered, living
from tests.serving import CRACK, FORM, Answer, form

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("openapi_spec_validator", reason="needs openapi-spec-validator, of the extra [dev]")

import openapi_spec_validator as openapi
from openapi_schema_validator import OAS31Validator

SENT = [("a.jpg", CRACK.read_bytes()), ("b.jpg", b"x")]
WORDS = {"method": "words", "normal": ["brick"], "abnormal": ["crack"]}
KEY = {"authorization": "Bearer 0123456789abcdef"}


@pytest.fixture(scope="module")
def running(serving):
    return serving


@pytest.fixture(scope="module")
def document(running):
    return running.get("/openapi.json").json


def complies(document, method: str, path: str, answer: Answer) -> None:
    """Check status, headers and content of an answer."""
    said = document["paths"][path][method.lower()]["responses"][str(answer.status)]
    for name, about in said.get("headers", {}).items():
        value = answer.headers.get(name.lower())
        assert value is not None or not about.get("required"), name
        if value is not None:
            OAS31Validator(about["schema"]).validate(int(value) if value.isdecimal() else value)
    kinds = said.get("content", {})
    if not kinds:
        assert answer.body == b""
        return
    kind = answer.headers["content-type"].partition(";")[0]
    validator = OAS31Validator({**kinds[kind].get("schema", {}), "components": document["components"]})
    for part in answer.body.splitlines() if kind == "application/x-ndjson" else [answer.body]:
        validator.validate(json.loads(part))


def test_the_document_is_valid_and_has_no_errors_that_the_service_does_not_have(document):
    openapi.validate(document)
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert {"403", "421", "500"} <= set(operation["responses"]), (method, path)
            takes_body = "requestBody" in operation
            assert ({"400", "408", "413", "415", "422", "429"} <= set(operation["responses"])) == takes_body
    fields = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]
    assert set(fields["properties"]) == {"files", *FIELDS}


def test_answers_are_what_the_document_says(running, document):
    def check(status: int, method: str, path: str, answer: Answer) -> Answer:
        assert answer.status == status
        complies(document, method, path, answer)
        return answer

    for kind in ("none", "png", "npy", "rle"):
        check(
            200,
            "POST",
            "/v1/predict",
            running.send("/v1/predict", SENT, map=kind, preview="1", map_size="40"),
        )
    made = check(201, "POST", "/v1/models", running.post("/v1/models", WORDS))
    check(200, "POST", "/v1/models", running.post("/v1/models", WORDS))
    memory = check(201, "POST", "/v1/memories", running.send("/v1/memories", SENT)).json
    compared = running.send("/v1/predict", SENT, model=memory["id"], map="png")
    assert (
        check(200, "POST", "/v1/predict", compared).json["predictions"][0]["nearest"]["reference"] == "a.jpg"
    )
    check(200, "GET", "/v1/models", running.get("/v1/models"))
    judged = check(200, "POST", "/v1/calibrate", running.send("/v1/calibrate", SENT)).json
    for id, status in ((memory["id"], 204), (judged["model"], 204), (made.json["id"], 404)):  # two are kept
        check(status, "DELETE", "/v1/models/{id}", running.ask("DELETE", f"/v1/models/{id}"))
    job = check(202, "POST", "/v1/jobs", running.send("/v1/jobs", SENT, map="png")).json
    while check(200, "GET", "/v1/jobs/{id}", running.get(f"/v1/jobs/{job['id']}")).json["state"] != "done":
        pass
    results = check(200, "GET", "/v1/jobs/{id}/results", running.get(f"/v1/jobs/{job['id']}/results"))
    assert len(results.body.splitlines()) == len(SENT)
    check(204, "DELETE", "/v1/jobs/{id}", running.ask("DELETE", f"/v1/jobs/{job['id']}"))
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/results")):
        check(404, method, f"/v1/jobs/{{id}}{path}", running.ask(method, f"/v1/jobs/j-1{path}"))


@pytest.mark.parametrize(
    ("path", "status", "body", "headers"),
    [
        *(
            (path, status, body, headers)
            for path in ("/v1/predict", "/v1/memories", "/v1/calibrate", "/v1/jobs")
            for status, body, headers in (
                (400, form([])[:-8], FORM),
                (404, form(SENT, model="m-1"), FORM),
                (415, b"", {"content-type": "text/plain"}),
                (422, form([]), FORM),
                (422, form(SENT[1:], colour="red"), FORM),
                (403, form(SENT), FORM | {"origin": "http://elsewhere.example"}),
                (421, form(SENT), FORM | {"host": "elsewhere.example"}),
            )
        ),
        *(
            (path, 413, form([("a.jpg", b"")] * 101), FORM)
            for path in ("/v1/predict", "/v1/memories", "/v1/calibrate")
        ),
        ("/v1/predict", 415, form([("a.txt", b"text")]), FORM),
        ("/v1/predict", 422, form([("a.jpg", CRACK.read_bytes()[:2000])]), FORM),
        ("/v1/memories", 422, form([("a.jpg", CRACK.read_bytes()[:2000])]), FORM),
        ("/v1/calibrate", 422, form([("a.jpg", CRACK.read_bytes()[:2000])]), FORM),
        ("/v1/models", 400, b"{", {}),
        ("/v1/models", 415, b"{}", {"content-encoding": "gzip"}),
        ("/v1/models", 422, b'{"method": "magic"}', {}),
        ("/v1/models", 413, b'{"normal": [' + b"0," * 2_000_000 + b"0]}", {}),
        ("/v2/models/default/infer", 422, b"{}", {}),
        ("/v2/models/m-1/infer", 404, b"{}", {}),
        ("/v2/models/default/infer", 421, b"{}", {"host": "elsewhere.example"}),
        ("/predict", 422, b"{}", {}),
        ("/setup", 400, b"", {}),
    ],
)
def test_errors_are_what_the_document_says(running, document, path, status, body, headers):
    answer = running.ask("POST", path, body, headers)
    assert answer.status == status
    parts = path.split("/")
    route = "/".join([*parts[:3], "{model}", *parts[4:]]) if "/infer" in path else path
    complies(document, "POST", route, answer)


def test_errors_of_other_methods_are_what_the_document_says(running, document):
    complies(document, "DELETE", "/v1/models/{id}", running.ask("DELETE", "/v1/models/default"))
    complies(document, "GET", "/v1/jobs/{id}/results", running.get("/v1/jobs/j-1/results?offset=x"))
    complies(document, "GET", "/v2/models/{model}", running.get("/v2/models/m-1"))
    complies(document, "GET", "/v1/models", running.get("/v1/models", host="elsewhere.example"))


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A service with a key, that is full soon and waits for nothing."""
    from anomalyclip.serve.app import build
    from anomalyclip.serve.settings import ServeSettings

    monkeypatch.setattr("anomalyclip.serve.guard._LINGER", 0.0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the service sets its own
    file = tmp_path / "key"
    file.write_text(KEY["authorization"].split()[1])
    given = {"time_limit": 0.1, "receive_limit": 0.1, "max_held": 0.2}
    return build(DetectorSpec("micro").load(), ServeSettings(key_file=file, **given))


def test_with_a_key_the_document_names_it_and_the_errors_of_a_full_service_are_in_it_too(locked):
    async def ask(method: str, path: str, status: int, *, key=KEY, **given) -> Answer:
        answer = await answered(locked, method, path, headers={**FORM, **key}, **given)
        assert answer.status == status
        return answer

    async def asked() -> None:
        async with living(locked):
            document = (await ask("GET", "/openapi.json", 200)).json
            openapi.validate(document)
            assert document["security"] == [{"bearer": []}, {"basic": []}]
            schemes = document["components"]["securitySchemes"]
            assert {name: (one["type"], one["scheme"]) for name, one in schemes.items()} == {
                "bearer": ("http", "bearer"),
                "basic": ("http", "basic"),
            }
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    is_open = operation.get("security") == []
                    assert is_open != ("401" in operation["responses"])
                    answer = await answered(
                        locked, method.upper(), path, headers={"content-type": "text/plain"}
                    )
                    assert is_open == (answer.status == 200)
                    complies(document, method, path, answer)
            for path in ("/v1/predict", "/v1/memories", "/v1/calibrate", "/v1/jobs"):
                full = await ask("POST", path, 429, body=form([("a.jpg", bytes(300_000))]))
                slow = await ask("POST", path, 408, body=form(SENT)[:100], more=True)
                for answer in (full, slow):
                    complies(document, "POST", path, answer)
            free = threading.Event()
            for _ in range(2):  # lanes
                locked._app.state.service.worker.call(free.wait)
            for path in ("/v1/predict", "/v1/memories"):
                complies(document, "POST", path, await ask("POST", path, 503, body=form(SENT)))
            free.set()

    asyncio.run(asked())
