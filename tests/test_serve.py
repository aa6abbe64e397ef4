"""The service over REST: real processes on loopback, real requests."""

import base64
import gc
import io
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import AnomalyCLIPError, Detector, DetectorSpec
from tests.browsing import chromium, drop, opened, scored
from tests.serving import BOUNDARY, CRACK, FORM, GOOD, form, part
from tests.videos import write_video


@pytest.fixture(scope="module")
def running(serving):
    return serving


@pytest.fixture(scope="module")
def detector():
    return DetectorSpec("micro").load(threshold=0.5)


def png(array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_it_says_address_model_and_threshold_in_one_look(running):
    assert running.said[0].split() == ["address", f"{running.url}/"]
    assert running.said[1].startswith("model      micro")
    assert running.said[2] == "threshold  score 0.5, pixel 0.5"


def test_a_picture_that_is_dropped_on_the_page_gets_its_score_and_verdict(running):
    score = running.predict(CRACK).json["predictions"][0]["pred_score"]
    with chromium() as browser, opened(browser, running.url) as page:
        drop(page, (CRACK.name, CRACK.read_bytes()))
        scored(page, 1)
        card = page.locator("#cards button").get_attribute("aria-label")
    assert card == f"{CRACK.name}, score {score:.4f}, anomalous"


def test_predictions_are_those_of_the_detector_under_the_names_of_the_jsonl(running, detector):
    answer = running.predict(CRACK, GOOD)
    assert answer.status == 200
    assert answer.json["model"] == "default"
    for file, said in zip((CRACK, GOOD), answer.json["predictions"], strict=True):
        expected = detector.predict(file).to_dict()
        del expected["image_path"]
        assert said.pop("pred_score") == pytest.approx(expected.pop("pred_score"), abs=1e-5)
        assert said == {
            "name": file.name,
            "index": 1,
            "time": None,
            **expected,
            "map": None,
            "preview": None,
            "error": None,
        }


def test_json_with_base64_gives_the_same_as_a_form(running):
    content = base64.b64encode(CRACK.read_bytes()).decode()
    images = [{"name": CRACK.name, "data": content}]
    answer = running.post("/v1/predict", {"images": images, "map": "png", "map_size": 32})
    assert answer.json == running.predict(CRACK, map="png", map_size="32").json


def test_maps_come_as_png_npy_or_runs_of_the_mask(running, detector):
    prediction = detector.predict(CRACK)
    limit = float(np.quantile(prediction.anomaly_map, 0.9))
    prediction = prediction.with_threshold(limit)
    maps = {
        kind: running.predict(CRACK, map=kind, threshold=str(limit)).json["predictions"][0]["map"]
        for kind in ("png", "npy", "rle")
    }
    assert {(said["width"], said["height"]) for said in maps.values()} == {prediction.image_size}
    values = np.load(io.BytesIO(base64.b64decode(maps["npy"]["data"])))
    assert values.dtype == np.float32
    assert np.abs(values - prediction.map_at()).max() < 1e-5
    gray = np.asarray(Image.open(io.BytesIO(base64.b64decode(maps["png"]["data"]))))
    assert np.abs(gray / 255 - values).max() <= 0.5 / 255 + 1e-5
    runs = maps["rle"]["data"]
    drawn = np.repeat(np.arange(len(runs)) % 2, runs).reshape(prediction.image_size).T
    mask = prediction.mask_at()
    assert mask is not None
    assert 0 < mask.sum() < mask.size
    assert (drawn == mask).mean() > 0.99  # a value may be at the threshold


def test_the_longest_side_of_a_map_is_what_was_asked_for(running):
    wide = png(np.full((40, 120, 3), 99, np.uint8))
    said = running.send("/v1/predict", [("wide.png", wide)], map="png", map_size="60")
    assert said.json["predictions"][0]["map"]["width"] == 60
    assert said.json["predictions"][0]["map"]["height"] == 20


def test_one_broken_file_is_an_entry_with_an_error_and_the_others_are_scored(running):
    files = [("a.jpg", CRACK.read_bytes()), ("b.jpg", CRACK.read_bytes()[:2000]), ("c.txt", b"hello")]
    answer = running.send("/v1/predict", files)
    assert answer.status == 200
    first, second, third = answer.json["predictions"]
    assert first["error"] is None
    assert first["pred_score"] > 0.5
    assert second["error"].startswith("b.jpg: damaged image")
    assert second["pred_score"] is None
    assert third["error"].startswith("c.txt: not an image of a known format")


def test_if_no_image_can_be_used_the_status_says_why(running):
    answer = running.send("/v1/predict", [("c.txt", b"hello")])
    assert answer.status == 415
    assert answer.error["code"] == "unsupported"
    assert answer.error["message"].startswith("c.txt: not an image")
    assert answer.json["predictions"][0]["error"] == answer.error["message"]


def test_pages_and_members_of_archives_are_entries_of_their_own(running):
    shades = [Image.new("L", (30, 20), shade) for shade in (40, 200)]
    pages, packed = io.BytesIO(), io.BytesIO()
    shades[0].save(pages, "TIFF", save_all=True, append_images=shades[1:])
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("line 1/../../a.jpg", GOOD.read_bytes())
        archive.writestr("notes.txt", b"left out")
        archive.writestr("b.jpg", CRACK.read_bytes())
    files = [("scan.tif", pages.getvalue()), ("parts.zip", packed.getvalue())]
    said = running.send("/v1/predict", files, preview="1").json["predictions"]
    assert [(entry["name"], entry["index"], entry["error"]) for entry in said] == [
        ("scan.tif", 1, None),
        ("scan.tif", 2, None),
        ("parts.zip/a.jpg", 1, None),
        ("parts.zip/b.jpg", 1, None),
    ]
    assert said[0]["pred_score"] != said[1]["pred_score"]
    preview = Image.open(io.BytesIO(base64.b64decode(said[1]["preview"]["data"])))
    assert preview.format == "JPEG"
    assert preview.size == (30, 20)
    assert abs(int(np.asarray(preview).mean()) - 200) <= 1


def test_frames_of_videos_and_slices_of_volumes_are_those_of_predict(running, detector, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="needs the extra [nifti]")
    pytest.importorskip("av", reason="needs the extra [video]")
    shades = np.linspace(20, 220, 6).astype(np.uint8)
    write_video(
        tmp_path / "line.mp4", [(n / 5, np.full((48, 64, 3), shade)) for n, shade in enumerate(shades)]
    )
    values = np.arange(40 * 30 * 3, dtype=np.int16).reshape(40, 30, 3)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    found = running.predict(tmp_path / "line.mp4", tmp_path / "scan.nii.gz", every="2", axis="coronal")
    said = found.json["predictions"]
    expected = [
        *detector.stream([f"{tmp_path}/line.mp4#every=2"]),
        *detector.stream([f"{tmp_path}/scan.nii.gz#axis=coronal&every=2"]),
    ]
    assert len(said) == 3 + 15
    assert [(one["index"], one["time"]) for one in said[:3]] == [(1, 0.0), (3, 0.4), (5, 0.8)]
    assert [one["pred_score"] for one in said] == pytest.approx(
        [one.pred_score for one in expected], abs=1e-5
    )
    assert (
        running.predict(GOOD, every="0").error["message"].startswith("every 0: expected a number of images")
    )


def test_dicom_is_recognised_by_its_content_whatever_its_name(running, detector):
    pydicom = pytest.importorskip("pydicom", reason="needs the extra [dicom]")
    file = Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small.dcm"
    answer = running.send("/v1/predict", [("IM0001", file.read_bytes())], preview="1")
    (said,) = answer.json["predictions"]
    assert said["pred_score"] == pytest.approx(detector.predict(file).pred_score, abs=1e-5)
    assert said["image_size"] == [64, 64]
    assert said["preview"]["width"] == 64


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"map": "tiff"}, 422, "map: expected one of none, png, npy, rle"),
        *(
            ({"threshold": value}, 422, "threshold: expected a number from 0 to 1")
            for value in ("1.5", "-1", "nan", "inf", "half")
        ),
        ({"map_size": "-1"}, 422, "map_size: expected a whole number from 0 to 65536"),
        ({"model": "m-1"}, 404, "model 'm-1' is not here (any more). Besides the service's own, 2 are kept"),
        ({"colour": "red"}, 422, "colour: unknown field"),
        ({"c" * 1000: "red"}, 422, "c" * 200 + ": unknown field"),
        ({"class_name": "slate"}, 422, "class_name: this model's method does not name what images show"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(running, fields, status, message):
    answer = running.predict(GOOD, **fields)
    assert answer.status == status
    assert answer.error["message"].startswith(message)
    assert answer.error["request_id"] == answer.headers["x-request-id"]


def test_a_model_of_ones_own_words_is_made_used_and_forgotten(running):
    words = {"method": "words", "normal": ["flawless object"], "abnormal": ["object with a crack"]}
    made = running.post("/v1/models", {**words, "threshold": 0.25})
    assert made.status == 201
    assert made.json["normal"] == words["normal"]
    assert made.json["threshold"]["score"] == 0.25
    id = made.json["id"]
    assert id in [model["id"] for model in running.get("/v1/models").json["models"]]
    said = running.predict(CRACK, model=id).json
    expected = DetectorSpec("micro", **words).load().predict(CRACK)
    assert said["model"] == id
    assert said["predictions"][0]["pred_score"] == pytest.approx(expected.pred_score, abs=1e-5)
    assert running.ask("DELETE", f"/v1/models/{id}").status == 204
    assert running.predict(CRACK, model=id).status == 404


def test_every_choice_that_is_offered_makes_a_model_without_any_file(running):
    offered = running.get("/v1/models").json["offers"]["choices"]
    assert {one["method"] for one in offered} == {
        "anomalyclip", "clip", "clip-ac", "words", "winclip", "anomalydino",
    }  # fmt: skip
    for one in offered:
        content = {"backbone": one["backbone"], "method": one["method"]}
        refused = running.post("/v1/models", content).status == 422
        assert refused == (one["class_name"] == "needed"), one
        named = running.post("/v1/models", {**content, "class_name": "object"}).status == 422
        assert named == (one["class_name"] == "none"), one
    needing = running.post("/v1/models", {"method": "anomalydino"}).json
    assert needing["needs_references"]
    assert not running.get("/v1/models").json["models"][0]["needs_references"]  # the service's own


def test_choices_depend_on_the_backbone_and_on_what_the_service_was_started_with():
    from anomalyclip.serve.choices import choices

    def methods(own, backbones, wanted):
        return [one["method"] for one in choices(own, backbones) if one["backbone"] == wanted]

    worded = ["clip", "clip-ac", "words", "winclip"]
    assert methods(None, ["ViT-B-32", "ViT-L-14-336"], "ViT-B-32") == [*worded, "anomalydino"]
    assert methods(None, ["ViT-L-14-336"], "ViT-L-14-336") == ["anomalyclip", *worded, "anomalydino"]
    trained = DetectorSpec("clip.pt", method="coop", trained="coop.safetensors", class_name="screw")
    assert methods(trained, ["micro"], None) == [*worded, "anomalydino", "coop"]
    assert [one["class_name"] for one in choices(trained, []) if one["method"] == "coop"] == ["optional"]
    assert methods(DetectorSpec("dinov2.pt", method="anomalydino"), [], None) == ["anomalydino"]
    assert choices(DetectorSpec(model="model.onnx"), []) == []


def test_models_that_differ_are_described_apart(running):
    """By method, words, options, references or threshold, whatever they are made of."""
    memory = running.send("/v1/memories", [(path.name, path.read_bytes()) for path in (CRACK, GOOD)]).json
    words = {
        "method": "words",
        "normal": ["flawless object"],
        "abnormal": ["object with a crack"],
        "sigma": 2.0,
    }
    made = running.post("/v1/models", {**words, "threshold": 0.25}).json
    models = running.get("/v1/models").json["models"]
    assert [model["id"] for model in models] == ["default", made["id"], memory["id"]]
    told = [{name: value for name, value in model.items() if name != "id"} for model in models]
    assert told[1] | {"title": None} == {
        "title": None,
        "backbone": "micro",
        "method": "words",
        "prompts": None,
        "normal": ["flawless object"],
        "abnormal": ["object with a crack"],
        "class_name": None,
        "image_size": 180,
        "tile": None,
        "options": {"sigma": 2.0},
        "references": [],
        "exported": False,
        "threshold": {"score": 0.25, "pixel": 0.25, "origin": "given", "says": []},
        "needs_references": False,
        "loaded": True,
    }
    assert told[2] == {
        **told[0],
        "title": f"{told[0]['title']}, 2 references",
        "references": [CRACK.name, GOOD.name],
        "threshold": None,
    }
    for model in models[1:]:
        assert running.ask("DELETE", f"/v1/models/{model['id']}").status == 204


def test_what_callers_may_choose_is_on_this_machine_already():
    from anomalyclip.serve.models import Models

    own = DetectorSpec("micro").load()
    assert Models(own, most=1).offers()["backbones"] == ["micro"]
    exported = Detector(own.scorer, spec=DetectorSpec(model="micro.onnx"))
    models = Models(exported, most=1, offered=("ViT-B-32",))
    assert models.offers()["backbones"] == ["ViT-B-32", "micro"]
    assert [one.own.describe()["exported"] for one in (models, Models(own, most=1))] == [True, False]
    assert Models(exported, most=1).chosen({"method": "words"}).backbone == "micro"
    with pytest.raises(AnomalyCLIPError, match="backbone 'ViT-L-14-336' is not offered here"):
        models.chosen({"backbone": "ViT-L-14-336"})


@pytest.mark.parametrize(
    "content",
    [
        {"backbone": "/etc/passwd"},
        {"backbone": "https://example.com/weights"},
        {"prompts": "../prompts.pth"},
        {"method": "words", "templates": "/etc/hosts", "normal": ["a"], "abnormal": ["b"]},
        {"references": ["/etc"]},
        {"model": "model.onnx"},
        {"image_size": 100_000},
    ],
)
def test_paths_and_addresses_of_callers_are_never_opened(running, content):
    assert running.post("/v1/models", content).status == 422


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tile": 127}, "tile 127: at least 128 pixels here"),
        ({"tile": 128.0, "overlap": 0.6}, "overlap 0.6: at most 0.5 here"),
        ({"c" * 5000: 1}, "c" * 200 + ": expected some of backbone"),
        *(
            ({"threshold": value}, "threshold: expected a number from 0 to 1")
            for value in (2, -1, "nan", True)
        ),
        (
            {"method": "words", "normal": ["zebra"], "abnormal": ["damaged object"]},
            "'zebra': the word 'zebra' is not",
        ),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_without_a_path_of_the_machine(running, content, message):
    answer = running.post("/v1/models", content)
    assert answer.status == 422
    assert answer.error["message"].startswith(message)
    assert "/" not in answer.error["message"]


def test_maps_that_are_larger_than_an_answer_may_be_are_refused(running):
    large = png(np.zeros((5000, 5000), np.uint8))
    answer = running.send("/v1/predict", [("large.png", large)], map="npy")
    assert answer.status == 413
    assert answer.error["message"].startswith("the maps of the answer take more than 100000000 bytes")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "text/plain"}, b"hello", 415),
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b"[" * 100_000, 400),
        ({"content-type": "application/json"}, b'{"images": [' + b"0," * 2_000_000 + b"0]}", 413),
        ({"content-type": "application/json"}, b'{"images": [{"data": "http://example.com/a.png"}]}', 422),
        ({"content-type": "multipart/form-data"}, b"", 400),
        (FORM, b"no form at all", 400),
        (FORM, form([("a.png", b"x")])[:-8], 400),
        (FORM, part("nothing", b""), 400),
        (FORM, form([]), 422),
        (FORM | {"content-encoding": "gzip"}, form([]), 415),
    ],
)
def test_a_damaged_request_is_refused_with_the_right_status(running, headers, body, status):
    answer = running.ask("POST", "/v1/predict", body, headers)
    assert answer.status == status
    assert set(answer.error) == {"code", "message", "request_id"}


def test_what_is_not_there_is_said_in_json_too(running):
    assert running.get("/v1/nothing").error["code"] == "not_found"
    assert running.get("/v1/predict").error["code"] == "method_not_allowed"
    assert running.get("/v1/predict").status == 405


def test_every_answer_forbids_what_a_page_does_not_need(running):
    for answer in (running.get("/v1/models"), running.get("/nothing"), running.predict(GOOD)):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_pages_of_other_sites_are_refused(running):
    assert running.get("/v1/models", host="evil.example").status == 421
    assert running.get("/v1/models", host="localhost:80").status == 200
    assert running.get("/v1/models", origin="http://evil.example").status == 403
    assert running.get("/v1/models", origin=running.url).status == 200
    assert running.get("/v1/models", **{"sec-fetch-site": "cross-site"}).status == 403


def test_the_log_has_requests_and_not_their_contents(running):
    answer = running.send("/v1/predict", [("secret-name.png", b"x")], class_name="")
    running.get("/v1/models")  # when it is answered, the first one is logged
    lines = [line for line in running.logged() if line.get("id") == answer.headers["x-request-id"]]
    assert [(line["event"], line["route"], line["status"]) for line in lines] == [
        ("request", "/v1/predict", 415)
    ]
    assert lines[0]["bytes_in"] == len(form([("secret-name.png", b"x")], class_name=""))
    assert "secret-name" not in running.log.read_text()


def test_a_request_keeps_the_id_it_came_with(running):
    assert running.get("/v1/models", **{"x-request-id": "line-4.7"}).headers["x-request-id"] == "line-4.7"
    assert running.get("/v1/models", **{"x-request-id": '"><b>'}).headers["x-request-id"] != '"><b>'


def test_measures_are_there_for_prometheus(running):
    running.predict(CRACK, GOOD)
    text = running.get("/metrics").body.decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["anomalyclip_images_total"]) >= 2
    assert float(values['anomalyclip_requests_total{route="/v1/predict",status="200"}']) >= 1
    assert {f'anomalyclip_stage_seconds_count{{stage="{stage}"}}' for stage in ("decode", "model")} <= set(
        values
    )
    assert float(values["anomalyclip_score_count"]) >= 2
    assert float(values["anomalyclip_held_bytes"]) == 0


def test_boundaries_may_come_in_pieces():
    from anomalyclip.serve.bodies import FormParser

    body = form([("a.png", b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n")], map="png")
    parser = FormParser(BOUNDARY.encode(), 5)
    for byte in body:
        parser.feed(bytes([byte]))
    found = parser.finish()
    assert found.fields == {"map": "png"}
    assert [(file.name, file.content) for file in found.files] == [
        ("a.png", b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n")
    ]


def test_the_files_of_a_form_leave_memory_with_it_and_do_not_wait_for_the_garbage_collector():
    from anomalyclip.serve.bodies import FormParser

    gc.disable()
    try:
        parser = FormParser(BOUNDARY.encode(), 5)
        parser.feed(form([("a.png", b"bytes")])[:-8])
        left = weakref.ref(parser)
        del parser
        assert left() is None
    finally:
        gc.enable()
