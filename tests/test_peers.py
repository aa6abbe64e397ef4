"""The benchmark against others: the published form gives the same results, and the table has what it says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomalyclip import DetectorSpec
from anomalyclip.benchmark import random_model
from anomalyclip.clip_core import default_dpam_layers
from anomalyclip.methods.anomalyclip import assemble

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_published_form_gives_our_scores_and_maps(benchmarks):
    from benchmarks.peers import SMALL
    from benchmarks.published_form import scorer

    clip, prompts = random_model(SMALL)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 70, 70, 3), dtype=np.uint8)
    ours = assemble(clip, prompts, DetectorSpec(image_size=70, device="cpu"))
    blocks = default_dpam_layers(SMALL)
    published = scorer(clip.state_dict(), SMALL, prompts, size=70, local_blocks=blocks)
    for expected, found in zip(ours(pixels), published(pixels), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_the_table_has_a_line_for_each_and_says_what_is_missing():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.peers",
            "--small",
            "--repeats",
            "1",
            "--only",
            "torch",
            "--only",
            "published",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    numbers = r"\| [\d.]+ \| [\d.]+ \| [\d.]+ \| \d+ \| \d+ \|"
    assert re.search(rf"\| ours, PyTorch {numbers}\n\| published form {numbers}\n", done.stdout), done.stdout
    assert "anomalib (WinCLIP, its predict) is not in the table: it needs torchvision" in done.stdout


@pytest.mark.slow
def test_the_stages_of_a_start_add_up_to_its_time():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.stages", "--small", "--starts", "1", "--before", "src"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = dict(re.findall(r"\| ([^|]+) \| ([\d.]+) \|", done.stdout))
    assert {"import PyTorch", "read the weights", "texts", "decode and resize", "encode", "write"} <= set(
        rows
    )
    assert float(rows.pop("total before")) > 0
    total = float(rows.pop("total"))
    assert sum(map(float, rows.values())) == pytest.approx(total, abs=0.01)
    assert all(float(seconds) < total for seconds in rows.values())
