"""What callers have sent leaves memory with their requests: nothing waits until Python looks for cycles."""

import asyncio
import base64
import gc
import json
import threading
import weakref

import pytest
from PIL import Image

from anomalyclip import DetectorSpec
from tests.asgi import answered, living
from tests.serving import CRACK, FORM, form

pytest.importorskip("fastapi", reason="needs the extra [serve]")

from anomalyclip.serve.app import build
from anomalyclip.serve.measures import Measures
from anomalyclip.serve.scoring import Entries, Scoring
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.uploads import Stored, Upload
from anomalyclip.serve.wanted import Wanted
from anomalyclip.serve.worker import Worker

CONTENT = CRACK.read_bytes()
TEXT = base64.b64encode(CONTENT).decode()
INTERFACE = """<View><Image name="picture" value="$image"/>
<BrushLabels name="mask" toName="picture"><Label value="Defect"/></BrushLabels></View>"""


def pictures(name: str, *, count: int = 1, broken: bool = False) -> list[tuple[str, bytes]]:
    return [(f"{name} {number}", CONTENT[: len(CONTENT) // 2 if broken else None]) for number in range(count)]


def as_json(content: object) -> tuple[bytes, dict[str, str]]:
    return json.dumps(content).encode(), {"content-type": "application/json"}


def in_form(
    name: str, *, count: int = 1, broken: bool = False, **fields: str
) -> tuple[bytes, dict[str, str]]:
    return form(pictures(name, count=count, broken=broken), **fields), FORM


def infer(*texts: str) -> tuple[bytes, dict[str, str]]:
    given = {"name": "image", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
    return as_json({"inputs": [given]})


def task(uri: str) -> tuple[bytes, dict[str, str]]:
    return as_json({"tasks": [{"data": {"image": uri}}], "label_config": INTERFACE})


REQUESTS = [
    ("/v1/predict", in_form("scored", map="npy", preview="1"), 200),
    ("/v1/predict", in_form("broken", broken=True), 422),
    ("/v1/predict", (form([*pictures("mixed"), *pictures("half", broken=True)]), FORM), 200),
    ("/v1/predict", (form([("no image", b"hello" * 1000)]), FORM), 415),
    ("/v1/predict", in_form("bad field", map="x"), 422),
    ("/v1/predict", in_form("maps too large", count=4, map="npy"), 413),
    ("/v1/predict", in_form("too many", count=5), 413),
    ("/v1/predict", (form(pictures("damaged"))[:-8], FORM), 400),
    ("/v1/predict", as_json({"images": [{"name": "text", "data": TEXT}, "!"]}), 422),
    ("/v1/memories", in_form("flawless", count=2), 201),
    ("/v1/memories", in_form("no flawless one", broken=True), 422),
    ("/v1/calibrate", in_form("normal", count=4, false_alarm_rate="0.5"), 200),
    ("/v1/calibrate", in_form("too few", false_alarm_rate="0"), 422),
    ("/v1/jobs", in_form("job", count=3), 202),
    ("/v1/jobs", in_form("broken job", broken=True), 202),
    ("/v2/models/default/infer", infer(TEXT), 200),
    ("/v2/models/default/infer", infer(TEXT, "!"), 422),
    ("/predict", task(f"data:image/jpeg;base64,{TEXT}"), 200),
    ("/predict", task(f"data:image/jpeg;base64,{TEXT[:-400]}"), 422),
    ("/predict", task(f"data:image/jpeg;base64,{TEXT}!"), 422),
]


@pytest.fixture(scope="module")
def detector():
    return DetectorSpec("micro").load(threshold=0.5)


@pytest.fixture(autouse=True)
def without_the_collector(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the service sets its own
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def served(app, requests) -> list[int]:
    """Statuses of answers; jobs are waited for, and the service is stopped at the end."""
    statuses = []
    async with living(app):
        for path, (body, headers), _ in requests:
            answer = await answered(app, "POST", path, body, headers)
            statuses.append(answer.status)
            if answer.status == 202:
                await job_over(app, f"/v1/jobs/{answer.json['id']}")
            del answer
    return statuses


async def job_over(app, path: str) -> None:
    """Wait until a job is over, and forget it."""
    while (await answered(app, "GET", path)).json["state"] != "done":
        await asyncio.sleep(0)
    assert (await answered(app, "DELETE", path)).status == 204


def test_no_file_and_no_picture_stays_whether_a_request_is_answered_or_refused(detector):
    settings = ServeSettings(models=2, jobs=1, max_files=4, max_request=1.0)
    before = set(map(id, pictures_here()))
    statuses = asyncio.run(served(build(detector, settings), REQUESTS))
    assert statuses == [status for _, _, status in REQUESTS]
    assert [one.name for one in gc.get_objects() if type(one) in (Upload, Stored)] == []
    assert [one.size for one in pictures_here() if id(one) not in before] == []


def pictures_here() -> list[Image.Image]:
    return [one for one in gc.get_objects() if issubclass(type(one), Image.Image)]


def test_threads_that_wait_keep_nothing_of_what_they_have_done(detector):
    worker, gone = Worker(1, 1, Measures()), threading.Event()
    scoring = Scoring(ServeSettings(), Measures())
    ticket = scoring.ticket(detector, [Upload("a.jpg", CONTENT)], Wanted(), Entries(1000))
    weakref.finalize(ticket, gone.set)
    worker.submit(ticket)
    ticket.done.result(timeout=60)
    del ticket
    assert gone.wait(timeout=20)
    worker.stop()
