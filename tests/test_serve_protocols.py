"""Other programs' protocols, with clients and forms that nobody here wrote."""

import base64
import json
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from anomalyclip import DetectorSpec
from tests.serving import CRACK, GOOD, STAIN, service
from tests.test_serve_brush import decoded

pytestmark = pytest.mark.slow

LIMIT = 0.2


@pytest.fixture(scope="module")
def studio():
    """A Label Studio of which only the pictures are there."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            elsewhere = self.path == "/data/moved.jpg"
            self.send_response(302 if elsewhere else 200)
            if elsewhere:
                self.send_header("Location", "/data/crack.jpg")
            self.end_headers()
            self.wfile.write(b"" if elsewhere else CRACK.read_bytes())

        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture(scope="module")
def running(tmp_path_factory, studio):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "token").write_text("t0ken\n")
    given = ("--threshold", LIMIT, "--label-studio", studio[0], "--label-studio-token", folder / "token")
    with service(folder, *given) as found:
        yield found


@pytest.fixture(scope="module")
def detector():
    return DetectorSpec("micro").load(threshold=LIMIT)


@pytest.fixture(scope="module")
def triton(running):
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient, which needs Python 3.11")
    with http.InferenceServerClient(f"{running.host}:{running.port}") as client:
        yield http, client


# --- Open Inference Protocol


def tensor(name, kind, shape, data):
    return {"inputs": [{"name": name, "datatype": kind, "shape": shape, "data": data}]}


def test_triton_s_client_finds_the_service_alive_and_its_model_described(triton):
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("default")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "anomalyclip"
    about = client.get_model_metadata("default")
    assert {one["name"]: one["datatype"] for one in about["outputs"]} == {
        "score": "FP32",
        "map": "FP32",
        "label": "BOOL",
    }


@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_client_gets_the_detector_s_scores_maps_and_labels(triton, detector, binary):
    http, client = triton
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in (CRACK, GOOD)]
    given = http.InferInput("pixels", [2, *pictures[0].shape], "UINT8")
    given.set_data_from_numpy(np.stack(pictures), binary_data=binary)
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("score", "map", "label")]
    found = client.infer("default", [given], outputs=outputs, request_id="7")
    expected = detector.predict(pictures)
    assert found.get_response()["id"] == "7"
    assert found.as_numpy("score") == pytest.approx([one.pred_score for one in expected], abs=1e-5)
    assert np.abs(found.as_numpy("map") - np.stack([one.anomaly_map for one in expected])).max() < 1e-5
    assert found.as_numpy("label").tolist() == [one.pred_label for one in expected]


def test_triton_s_client_sends_encoded_files_as_bytes(triton, detector):
    http, client = triton
    content = np.array([CRACK.read_bytes(), GOOD.read_bytes()], dtype=object)
    given = http.InferInput("image", [2], "BYTES")
    given.set_data_from_numpy(content)
    found = client.infer("default", [given])
    expected = [detector.predict(file).pred_score for file in (CRACK, GOOD)]
    assert found.as_numpy("score") == pytest.approx(expected, abs=1e-5)
    assert sorted(one["name"] for one in found.get_response()["outputs"]) == ["label", "map", "score"]


def test_triton_s_client_is_told_what_is_wrong(triton):
    http, client = triton
    given = http.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"no image"], dtype=object))
    with pytest.raises(http.InferenceServerException, match="not an image of a known format") as caught:
        client.infer("default", [given])
    assert caught.value.status() == "415"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "inputs: expected one"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}, "image: expected 1 texts"),
        ({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1]}]}, "input 'image' of FP32"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": ["1"]}]}, "shape: expected"),
        (
            {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["/etc/passwd"]}]},
            "image 1: not base64",
        ),
        (
            {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 999]}]},
            "pixels: expected 3",
        ),
    ],
)
def test_a_damaged_inference_is_refused_in_the_protocol_s_form(running, content, message):
    answer = running.post("/v2/models/default/infer", content)
    assert answer.status == 422
    assert answer.json["error"].startswith(message)


@pytest.mark.parametrize("body", [b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xff", struct.pack("<I", 0) * 2])
def test_a_damaged_binary_tensor_is_refused(running, body):
    given = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(body)},
    }
    head = json.dumps({"inputs": [given]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    assert running.ask("POST", "/v2/models/default/infer", head + body, headers).status == 400


# --- Label Studio

CONFIG = """<View><!-- parts --><Image name="picture" value="$image"/>
<BrushLabels name="mask" toName="picture"><Label value="Fine"/><Label value="Anomaly"/></BrushLabels>
<RectangleLabels name="box" toName="picture"><Label value="Defect"/></RectangleLabels></View>"""


def test_a_task_is_prelabelled_with_a_brush_mask_boxes_and_a_score(running, detector):
    uri = "data:image/jpeg;base64," + base64.b64encode(STAIN.read_bytes()).decode()
    answer = running.post("/predict", {"tasks": [{"id": 3, "data": {"image": uri}}], "label_config": CONFIG})
    assert answer.status == 200
    (said,) = answer.json["results"]
    expected = detector.predict(STAIN)
    assert len(expected.regions) == 2
    assert said["score"] == pytest.approx(expected.pred_score, abs=1e-5)
    mask, *boxes = said["result"]
    assert (mask["from_name"], mask["to_name"], mask["type"]) == ("mask", "picture", "brushlabels")
    assert mask["value"]["brushlabels"] == ["Anomaly"]
    width, height = expected.image_size
    assert (mask["original_width"], mask["original_height"]) == (width, height)
    drawn = decoded(mask["value"]["rle"]).reshape(height, width, 4)[:, :, 3] > 0
    assert (drawn == expected.mask_at()).mean() > 0.999
    assert len(boxes) == len(expected.regions)
    x0, y0, _, y1 = expected.regions[0].box
    value = boxes[0]["value"]
    assert (boxes[0]["type"], value["rectanglelabels"]) == ("rectanglelabels", ["Defect"])
    assert value["x"] == pytest.approx(100 * x0 / width)
    assert value["height"] == pytest.approx(100 * (y1 - y0) / height)


def test_pictures_are_fetched_from_the_one_label_studio_that_was_named_and_from_nowhere_else(running, studio):
    url, asked = studio

    def task(image: str):
        return running.post("/predict", {"tasks": [{"data": {"image": image}}], "label_config": CONFIG})

    assert task("/data/crack.jpg").status == 200
    assert task(f"{url}/data/crack.jpg?d=1").status == 200
    assert asked == [("/data/crack.jpg", "Token t0ken"), ("/data/crack.jpg?d=1", "Token t0ken")]
    other = url.rpartition(":")[0]
    for address in (
        f"{url}@{other}/a",
        f"{url}1/a",
        f"{other}:1/a",
        "//127.0.0.1/a",
        "file:///etc/passwd",
        "a.jpg",
    ):
        refused = task(address)
        assert refused.status == 422
        assert "only that address is opened" in refused.error["message"]
    moved = task("/data/moved.jpg")
    assert moved.status == 422
    assert "302" in moved.error["message"]
    assert len(asked) == 3


@pytest.mark.parametrize(
    "config",
    [
        None,
        "<View",
        "<View/>",
        '<!DOCTYPE x [<!ENTITY a "aaaa">]><View>&a;</View>',
        '<View><Image name="i" value="$i"/><Choices name="c" toName="i"/></View>',
    ],
)
def test_an_interface_that_cannot_show_regions_is_refused(running, config):
    assert running.post("/predict", {"tasks": [{}], "label_config": config}).status == 422


def test_label_studio_s_other_calls_are_answered(running):
    assert running.get("/health").json == {"status": "UP", "model_class": "AnomalyCLIP"}
    assert (
        running.post("/setup", {"project": "1", "schema": CONFIG}).json["model_version"].startswith("micro")
    )
    assert running.post("/setup", {"schema": "<View/>"}).status == 422
    assert running.post("/webhook", {"action": "ANNOTATION_CREATED"}).status == 200
