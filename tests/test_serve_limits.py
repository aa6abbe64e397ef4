"""What a caller can make the service do, and what it is told of errors: without a service, and without waiting."""

import contextlib
import gc
import io
import json
import logging
import socket
import threading
import weakref

import pytest
from PIL import Image

from anomalyclip import AnomalyCLIPError, DetectorSpec, InputError, calibrate, fit, remember
from anomalyclip.demo import PICTURES

pytest.importorskip("fastapi", reason="needs the extra [serve]")

from starlette.requests import Request

from anomalyclip.serve.bodies import Held, beside
from anomalyclip.serve.jobs import Job, JobEntries
from anomalyclip.serve.learning import Caller, Flawless, next_reference
from anomalyclip.serve.measures import Measures
from anomalyclip.serve.refusals import Refusal
from anomalyclip.serve.running import bound
from anomalyclip.serve.scoring import Entries, Scoring
from anomalyclip.serve.service import refusal_of
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.uploads import Upload
from anomalyclip.serve.wanted import Wanted
from anomalyclip.serve.worker import Ticket, Worker


@pytest.fixture(scope="module")
def tiled():
    return DetectorSpec("micro", tile=128, overlap=0.5).load()


def plain(side: int) -> Upload:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    return Upload(f"{side}.png", file.getvalue())


SAID = "3000.png: 3000 x 3000 pixels make 2116 tiles of 128; at most 2000 are scored here"


def test_an_image_of_too_many_tiles_fails_alone_before_any_is_scored(tiled):
    entries = Entries(1000)
    scoring = Scoring(ServeSettings(), Measures())
    ticket = scoring.ticket(tiled, [plain(3000), plain(300)], Wanted(), entries)
    assert [step is None for step in ticket.steps] == [True, False]
    assert entries.found[0]["error"].startswith(SAID)
    assert entries.failure() == 413


def test_a_flawless_image_of_too_many_tiles_is_not_learned(tiled):
    flawless = Flawless(ServeSettings(), tiled)
    assert len(list(flawless.of([plain(3000), plain(300)]))) == 1
    assert flawless.names == ["300.png"]
    assert flawless.failed[0]["error"].startswith(SAID)


def test_a_memory_is_made_of_so_many_images_at_most(tiled):
    images = Flawless(ServeSettings(max_images=2), tiled).of([plain(side) for side in (10, 11, 12)])
    assert [next(images).size, next(images).size] == [(10, 10), (11, 11)]
    with pytest.raises(Refusal, match="^12.png: more than 2 images") as refused:
        next(images)
    assert refused.value.status == 413


def test_no_more_is_learned_once_the_caller_has_left(tiled):
    flawless = Flawless(ServeSettings(), tiled)
    images = flawless.of([plain(10), plain(11)])
    next(images)
    flawless.caller.left.set()
    with pytest.raises(Refusal, match="nobody waits"):
        next(images)
    assert flawless.names == ["10.png"]


def test_references_are_no_longer_compared_once_the_caller_has_left():
    detector = DetectorSpec("micro").load()
    few_shot = remember(detector, fit(detector, sorted(PICTURES.glob("*_good.jpg"))))
    caller, worker, compared = Caller(), Worker(1, 1, Measures()), []

    @contextlib.contextmanager
    def track(what, total):
        def advance():
            compared.append(what)
            next_reference(caller, worker)
            caller.left.set()

        yield advance

    with pytest.raises(Refusal, match="nobody waits"):
        calibrate(few_shot, false_alarm_rate=0.2, track=track)
    worker.stop()
    assert compared == ["Comparing references"] * 2


def test_what_is_read_from_json_is_counted_beside_the_json():
    body = json.dumps({"images": [{"data": "AAAA" * 1000}] * 3}).encode()
    assert len(body) < beside(body) < 1.1 * len(body)
    numbers = json.dumps({"inputs": [[1] * 1000] * 100}).encode()
    assert beside(numbers) > 32 * 100_000


@pytest.mark.parametrize(
    ("problem", "said", "logged"),
    [
        (AnomalyCLIPError("/opt/models/a.pt: damaged"), "a.pt: damaged", 0),
        (RuntimeError("/opt/secret"), "an internal error; the log has it under j-1", 1),
    ],
)
def test_a_job_that_fails_tells_no_path_and_logs_what_nobody_foresaw(tiled, caplog, problem, said, logged):
    job = Job("j-1", "default", 1, JobEntries(Held(1000)), contextlib.ExitStack(), Ticket(tiled, iter(())))
    job.ticket.done.add_done_callback(job.settle)
    with caplog.at_level(logging.ERROR, "anomalyclip.serve"):
        job.ticket.done.set_exception(problem)
    assert (job.describe()["state"], job.describe()["error"]) == ("failed", said)
    assert [record.exc_info[1] for record in caplog.records] == [problem] * logged


def test_a_job_that_is_forgotten_leaves_memory_with_its_model_at_once(tiled):
    job = Job("j-1", "default", 1, JobEntries(Held(1000)), contextlib.ExitStack(), Ticket(tiled, iter(())))
    job.ticket.done.add_done_callback(job.settle)
    job.ticket.done.set_result(None)
    gc.disable()
    try:
        left = weakref.ref(job), weakref.ref(job.ticket)
        job.end()
        del job
        assert [one() for one in left] == [None, None]
    finally:
        gc.enable()


def test_two_lanes_score_two_batches_at_once():
    """Each image is scored only when another one is, too."""
    detector, both = DetectorSpec("micro").load(), threading.Barrier(2, timeout=60)
    scorer = detector.scorer

    class Meeting:
        image_size, identity, describe = scorer.image_size, scorer.identity, scorer.describe

        def __call__(self, pixels):
            both.wait()
            return scorer(pixels)

    detector.scorer = Meeting()
    worker, entries = Worker(1, 2, Measures(), lanes=2), Entries(1000)
    ticket = Scoring(ServeSettings(), Measures()).ticket(detector, [plain(10), plain(20)], Wanted(), entries)
    worker.submit(ticket)
    ticket.done.result(timeout=60)
    worker.stop()
    assert [said["error"] for said in entries.in_order()] == [None, None]


def test_answers_are_sent_at_once():
    """asyncio turns off the wait for more to send (Nagle's algorithm) on TCP sockets that are said to be TCP."""
    with bound(ServeSettings(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_errors_of_what_is_learned_name_no_folder_and_the_log_has_it(caplog):
    request = Request({"type": "http", "request_id": "7f"})
    with caplog.at_level(logging.WARNING, "anomalyclip.serve"):
        refused = refusal_of(request, AnomalyCLIPError("/opt/memory.pt: damaged"), more={"failed": []})
        refusal_of(request, InputError("a.png: empty file"))
    assert (refused.status, str(refused), refused.more) == (422, "memory.pt: damaged", {"failed": []})
    assert [record.fields["error"] for record in caplog.records] == ["/opt/memory.pt: damaged"]
