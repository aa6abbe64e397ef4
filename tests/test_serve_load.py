"""Many callers at once: everybody gets the answer to their own picture, and nobody is told anything but to wait."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from anomalyclip import DetectorSpec
from anomalyclip.client import Client
from tests.serving import service

pytestmark = pytest.mark.slow

CALLERS, EACH, QUEUE = 64, 3, 16


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    shades = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(shades).resize((160, 120), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def test_64_callers_get_their_own_answers_and_no_error_but_429(tmp_path):
    pictures = [picture(seed) for seed in range(CALLERS)]
    expected = [one.pred_score for one in DetectorSpec("micro").load().predict(pictures)]
    assert len({round(score, 6) for score in expected}) > CALLERS // 2
    with service(tmp_path, "--queue", QUEUE, "--batch-size", 8) as running:
        client = Client(running.url, patience=600)  # whoever is told to come back does

        def call(caller: int) -> None:
            for _ in range(EACH):
                found = client.predict(pictures[caller])
                assert found.pred_score == pytest.approx(expected[caller], abs=1e-5)

        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(call, range(CALLERS)))
        measured = running.get("/metrics").body.decode()
    values = {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in measured.splitlines() if not line.startswith("#"))
    }
    of_predict = 'anomalyclip_requests_total{route="/v1/predict",status='
    statuses = {name: value for name, value in values.items() if name.startswith(of_predict)}
    assert statuses.pop(f'{of_predict}"200"}}') == CALLERS * EACH
    assert list(statuses) == [f'{of_predict}"429"}}']
    assert values["anomalyclip_images_total"] == CALLERS * EACH
    assert values["anomalyclip_batch_images_count"] < CALLERS * EACH  # callers shared them
    assert values["anomalyclip_held_bytes"] == 0
