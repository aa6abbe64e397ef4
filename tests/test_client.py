"""The client in Python: what the service says comes back as the values that the library has."""

import io

import numpy as np
import pytest
from PIL import Image

from anomalyclip import DetectorSpec, InputError
from anomalyclip.client import Client, ServiceError
from anomalyclip.demo import PICTURES
from tests.serving import CRACK, GOOD

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def detector():
    return DetectorSpec("micro").load(threshold=0.5)


@pytest.fixture(scope="module")
def client(serving):
    return Client(serving.url)


def same(found, expected) -> bool:
    return (
        found.pred_score == pytest.approx(expected.pred_score, abs=1e-5)
        and np.abs(found.anomaly_map - expected.anomaly_map).max() < 1e-5
        and found.image_size == expected.image_size
        and (found.threshold, found.pixel_threshold) == (expected.threshold, expected.pixel_threshold)
    )


def test_every_kind_of_source_gives_the_detector_s_prediction(client, detector):
    picture = Image.open(GOOD)
    with open(GOOD, "rb") as file:
        found = client.predict(
            [GOOD, GOOD.read_bytes(), io.BytesIO(GOOD.read_bytes()), file, picture, np.asarray(picture)]
        )
    expected = detector.predict(GOOD)
    assert [same(one, expected) for one in found] == [True] * 6
    assert found[0].image_path == GOOD.name
    assert same(client.predict(CRACK), detector.predict(CRACK))


def test_what_cannot_be_used_is_the_error_that_the_library_has(client, tmp_path):
    with pytest.raises(InputError, match="not an image of a known format"):
        client.predict(b"no image")
    with pytest.raises(InputError, match="no such file|No such file"):
        client.predict(tmp_path / "missing.png")
    with pytest.raises(ServiceError, match="model 'm-0' is not here") as caught:
        client.predict(GOOD, model="m-0")
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    assert caught.value.request_id


def test_models_memories_and_thresholds_are_made_used_and_forgotten(client):
    goods = sorted(PICTURES.glob("*_good.jpg"))
    words = client.make_model(method="words", normal=["flawless object"], abnormal=["object with a crack"])
    assert words.about["method"] == "words"
    memory = client.remember(goods)
    found = client.calibrate(model=memory.id, false_alarm_rate=0.2)
    assert found.about["images"] == len(goods)
    assert client.predict(CRACK, model=found.model).threshold == found.score
    for id in (memory.id, found.model):
        client.forget(id)
    assert {memory.id, found.model}.isdisjoint(model.id for model in client.models())


def test_a_job_gives_predictions_and_errors_in_order(client, detector):
    job = client.start_job([CRACK, b"no image", GOOD], threshold=0.5)
    first, second, third = job.results()
    assert same(first, detector.predict(CRACK))
    assert isinstance(second, InputError)
    assert same(third, detector.predict(GOOD))
    assert job.status()["state"] == "done"
    job.cancel()
    with pytest.raises(ServiceError, match="is not here"):
        job.status()
