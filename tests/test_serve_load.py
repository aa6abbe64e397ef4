"""Many callers at once: everybody gets the answer to their own picture, and nobody is told anything but to wait."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import DetectorSpec
from anomalyclip.client import Client
from tests.serving import service

pytestmark = pytest.mark.slow

CALLERS, EACH, QUEUE = 64, 3, 16
BYTES = 640 * 480 * 3
FLAT = 64_000_000
"""Bytes by which memory may grow once every caller was there: far fewer than all uploads of a test have."""


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    shades = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(shades).resize((640, 480), Image.Resampling.BICUBIC).save(file, "BMP")
    return file.getvalue()


def memory(running) -> int:
    """Bytes that the service has in memory."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def test_64_callers_get_their_own_answers_no_error_but_429_and_memory_stays_flat(tmp_path):
    pictures = [picture(seed) for seed in range(CALLERS)]
    expected = [one.pred_score for one in DetectorSpec("micro").load().predict(pictures)]
    assert len({round(score, 6) for score in expected}) > CALLERS // 2
    assert (EACH - 1) * CALLERS * BYTES > 1.5 * FLAT
    with service(tmp_path, "--queue", QUEUE, "--batch-size", 8) as running:
        client = Client(running.url, patience=600)  # whoever is told to come back does

        def call(caller: int, times: int) -> None:
            for _ in range(times):
                found = client.predict(pictures[caller])
                assert found.pred_score == pytest.approx(expected[caller], abs=1e-5)

        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(call, range(CALLERS), [1] * CALLERS))
            before = memory(running)
            list(pool.map(call, range(CALLERS), [EACH - 1] * CALLERS))
            assert memory(running) - before < FLAT
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
