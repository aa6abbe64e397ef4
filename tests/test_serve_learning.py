"""Memories, thresholds and jobs of callers: made in the service, by the same code as on the command line."""

import json

import pytest

from anomalyclip import Detector, DetectorSpec, calibrate, fit, remember
from anomalyclip.demo import PICTURES
from tests.serving import CRACK, GOOD, service

pytestmark = pytest.mark.slow

GOODS = sorted(PICTURES.glob("*_good.jpg"))


@pytest.fixture(scope="module")
def running(serving):
    return serving


@pytest.fixture(scope="module")
def detector():
    return DetectorSpec("micro").load()


def files(*paths):
    return [(path.name, path.read_bytes()) for path in paths]


@pytest.fixture(scope="module")
def few_shot(detector) -> Detector:
    return remember(detector, fit(detector, GOODS))


def test_a_memory_scores_as_fit_does_and_calibrates_by_leaving_each_reference_out(running, few_shot):
    made = running.send("/v1/memories", [*files(*GOODS), ("broken.png", b"x")])
    assert made.status == 201
    assert made.json["references"] == [path.name for path in GOODS]
    assert [one["name"] for one in made.json["failed"]] == ["broken.png"]
    said = running.predict(CRACK, model=made.json["id"]).json["predictions"][0]
    assert said["pred_score"] == pytest.approx(few_shot.predict(CRACK).pred_score, abs=1e-5)

    found = running.send("/v1/calibrate", [], model=made.json["id"], false_alarm_rate="0.2")
    expected = calibrate(few_shot, false_alarm_rate=0.2)
    assert found.status == 200
    assert found.json["threshold"]["score"] == pytest.approx(expected.score, abs=1e-5)
    assert found.json["false_alarm_rate"] == expected.info["false_alarm_rate"]
    judged = running.predict(CRACK, model=found.json["model"]).json["predictions"][0]
    assert judged["threshold"] == found.json["threshold"]["score"]


def test_references_among_the_images_for_a_threshold_are_left_out(running, few_shot):
    memory = running.send("/v1/memories", files(*GOODS[:2])).json["id"]
    found = running.send("/v1/calibrate", files(*GOODS), model=memory, false_alarm_rate="0.4").json
    assert found["images"] == len(GOODS) - 2
    assert [one["name"] for one in found["failed"]] == [path.name for path in GOODS[:2]]
    assert "is a reference of this model" in found["failed"][0]["error"]
    refused = running.send("/v1/calibrate", files(*GOODS[:2]), model=memory)
    assert refused.status == 422
    assert "is a reference of this model" in refused.error["message"]


@pytest.mark.slow
def test_a_service_that_runs_from_a_kept_file_makes_memories_too(tmp_path, few_shot):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    with service(tmp_path, "--engine", "onnx") as kept:
        made = kept.send("/v1/memories", files(*GOODS))
        assert made.status == 201
        entry = kept.predict(CRACK, model=made.json["id"]).json["predictions"][0]
    assert entry["pred_score"] == pytest.approx(few_shot.predict(CRACK).pred_score, abs=1e-4)


def test_a_threshold_of_normal_images_is_the_one_that_calibrate_finds(running, detector):
    found = running.send("/v1/calibrate", files(*GOODS), false_alarm_rate="0.1")
    expected = calibrate(detector, GOODS, false_alarm_rate=0.1)
    assert found.json["threshold"]["score"] == pytest.approx(expected.score, abs=1e-5)
    assert found.json["threshold"]["says"] == expected.info["says"]
    assert found.json["images"] == len(GOODS)
    assert found.json["false_alarm_rate"]["high"] == expected.info["false_alarm_rate"]["high"]


def test_a_model_that_is_asked_for_is_never_a_memory_or_a_threshold_of_another_caller(running):
    words = {"method": "words", "normal": ["brick"], "abnormal": ["crack"]}
    plain = running.post("/v1/models", words).json["id"]
    memory = running.send("/v1/memories", files(GOOD), model=plain).json["id"]
    judged = running.send("/v1/calibrate", files(*GOODS), model=plain, false_alarm_rate="0.1").json["model"]
    again = running.post("/v1/models", words).json
    assert again["id"] not in (memory, judged)
    assert (again["references"], again["threshold"]) == ([], None)


def test_a_method_that_needs_flawless_images_says_so(running):
    made = running.post("/v1/models", {"method": "anomalydino"}).json["id"]
    said = running.predict(GOOD, model=made)
    assert (said.status, "give references" in said.error["message"]) == (422, True)


def test_only_so_many_models_are_kept_and_the_least_used_goes_first(running):
    first, second = (running.send("/v1/memories", files(GOOD)).json["id"] for _ in range(2))
    assert running.predict(GOOD, model=first).status == 200
    third = running.send("/v1/memories", files(GOOD)).json["id"]
    ids = [model["id"] for model in running.get("/v1/models").json["models"]]
    assert ids == ["default", third, first]
    for forgotten in (
        running.predict(GOOD, model=second),
        running.send("/v1/calibrate", files(GOOD), model=second),
        running.get(f"/v2/models/{second}"),
        running.ask("DELETE", f"/v1/models/{second}"),
    ):
        assert forgotten.status == 404
        message = json.loads(forgotten.body)["error"]
        message = message if isinstance(message, str) else message["message"]
        assert message.startswith(
            f"model '{second}' is not here (any more). Besides the service's own, 2 are kept"
        )
        assert "Make it again, as it was made: POST /v1/models, /v1/memories or /v1/calibrate" in message
    assert running.ask("DELETE", "/v1/models/default").status == 409


@pytest.mark.parametrize(
    ("path", "sent", "fields", "message"),
    [
        ("/v1/memories", [], {}, "no images"),
        ("/v1/memories", [("a.png", b"x")], {}, "a.png: not an image"),
        ("/v1/memories", [("a.png", b"x")], {"colour": "1"}, "colour: unknown field"),
        ("/v1/calibrate", [], {}, "no images: send normal ones"),
        ("/v1/calibrate", [("a.png", b"x")], {}, "no normal image could be scored"),
        ("/v1/calibrate", files(GOOD), {"false_alarm_rate": "0"}, "false-alarm rate"),
        ("/v1/jobs", [], {}, "no images"),
    ],
)
def test_what_cannot_be_learned_from_is_said(running, path, sent, fields, message):
    answer = running.send(path, sent, **fields)
    assert answer.status == 422
    assert answer.error["message"].startswith(message)


def results(running, id):
    lines, offset = [], 0
    while True:
        answer = running.get(f"/v1/jobs/{id}/results?offset={offset}&limit=2")
        lines += [json.loads(line) for line in answer.body.splitlines()]
        if "x-next-offset" not in answer.headers:
            return lines
        offset = int(answer.headers["x-next-offset"])


def test_a_job_gives_the_results_of_a_request_page_by_page_and_keeps_no_file(running):
    sent = [*files(*GOODS), ("broken.png", b"x"), *files(CRACK)]
    started = running.send("/v1/jobs", sent, threshold="0.5")
    assert started.status == 202
    id = started.json["id"]
    lines = results(running, id)
    expected = running.send("/v1/predict", sent, threshold="0.5").json["predictions"]
    for line, other in zip(lines, expected, strict=True):
        assert line.pop("pred_score") == pytest.approx(other.pop("pred_score"), abs=1e-5)
        assert line == other
    said = running.get(f"/v1/jobs/{id}").json
    assert said["state"] == "done"
    assert (said["files"], said["images_done"], said["images_failed"]) == (len(sent), len(sent), 1)
    assert list((running.log.parent / "jobs").iterdir()) == []


def test_jobs_are_cancelled_and_only_so_many_are_kept(running):
    many = [(f"{number}.jpg", CRACK.read_bytes()) for number in range(400)]
    id = running.send("/v1/jobs", many).json["id"]
    refused = running.send("/v1/jobs", many[:1])
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert running.predict(GOOD).status == 200  # requests go first
    assert running.get(f"/v1/jobs/{id}").json["images_done"] < 400
    assert running.ask("DELETE", f"/v1/jobs/{id}").status == 204
    assert running.get(f"/v1/jobs/{id}").status == 404
    last = running.send("/v1/jobs", many[:1])
    assert last.status == 202
    assert running.ask("DELETE", f"/v1/jobs/{last.json['id']}").status == 204
