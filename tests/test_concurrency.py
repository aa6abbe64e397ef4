"""One detector in many threads, and many processes with nothing in their caches: the same results as one alone."""

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from anomalyclip import Detector, DetectorSpec, Threshold
from anomalyclip.demo import PICTURES
from tests.conftest import torch_scorer
from tests.generated_sets import make_set


def test_sixteen_threads_share_one_detector_and_get_what_one_gets_alone(tiny_clip, paper_case):
    scorer = torch_scorer(tiny_clip, paper_case.prompts, image_size=56)
    detector = Detector(scorer, threshold=Threshold(score=0.5, pixel=0.5))
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), np.uint8)
    alone = [detector.predict(image) for image in noise]
    assert len({prediction.pred_score for prediction in alone}) == 4
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda index: detector.predict(noise[index % 4]), range(64)))
    for index, prediction in enumerate(found):
        assert prediction.to_dict() == alone[index % 4].to_dict()
        assert (prediction.anomaly_map == alone[index % 4].anomaly_map).all()


# --- processes


def at_once(commands: list[list[object]], folder: Path) -> None:
    """Start commands at once, with empty caches, and wait for all of them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder)}
    environment |= {name: str(folder / "cache") for name in ("XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR")}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "anomalyclip", *map(str, words)],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in commands
    ]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * len(commands), said


@pytest.mark.slow
def test_four_processes_that_start_at_once_with_a_cold_cache_agree(tmp_path):
    pictures = sorted(PICTURES.glob("*.jpg"))[:2]
    at_once(
        [["predict", *pictures, "--backbone", "micro", "--output", f"out-{i}"] for i in range(4)], tmp_path
    )
    lines = [(tmp_path / f"out-{i}" / "predictions.jsonl").read_text() for i in range(4)]
    assert len(lines[0].splitlines()) == 2
    assert lines == [lines[0]] * 4


@pytest.mark.slow
def test_four_trainings_that_start_at_once_fill_one_cache_of_features_together(tmp_path):
    make_set(tmp_path / "parts", classes=("nut",), normal=2, anomalous=2, side=56)
    words = ["train", "parts", "--backbone", "micro", "--epochs", 2, "--cache", "features"]
    at_once([[*words, "--output", f"out-{i}"] for i in range(4)], tmp_path)
    prompts = [(tmp_path / f"out-{i}" / "prompts.safetensors").read_bytes() for i in range(4)]
    assert prompts == [prompts[0]] * 4
    kept = [path.suffix for path in (tmp_path / "features").rglob("*") if path.is_file()]
    assert sorted(kept) == [".json", *[".npy"] * 4]


def score(spec: str, picture: str) -> dict[str, object]:
    return DetectorSpec.from_json(spec).load().predict(picture).to_dict()


@pytest.mark.slow
def test_a_process_that_was_spawned_loads_the_detector_of_its_spec(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec, picture = DetectorSpec("micro"), str(sorted(PICTURES.glob("*.jpg"))[0])
    own = json.loads(json.dumps(spec.load().predict(picture).to_dict()))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        theirs = list(pool.map(score, [spec.to_json()] * 2, [picture] * 2))
    assert json.loads(json.dumps(theirs)) == [own, own]
