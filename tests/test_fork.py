"""A detector in a forked process: it scores, or refuses at once; it never waits for threads that were not copied."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from anomalyclip.demo import PICTURES
from anomalyclip.detector import Detector
from anomalyclip.engines.export import export
from anomalyclip.errors import AnomalyCLIPError
from tests.conftest import torch_scorer

FORK = """
import json, os, sys, threading
import numpy as np, torch
from anomalyclip import Detector

torch.set_num_threads(4)
picture, exported = sys.argv[1:3]
used_before = "used" in sys.argv
detector = Detector.from_exported(exported, threads=4) if exported else Detector.from_pretrained("micro")
scores = [detector.predict(picture).pred_score] if used_before else []

reading, writing = os.pipe()
child = os.fork()
if child == 0:
    def score():
        scores.append(detector.predict(picture).pred_score)
    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    score()  # in another thread than the first time
    scores.extend(prediction.pred_score for prediction in detector.stream([picture] * 3, batch_size=2))
    os.write(writing, json.dumps(scores).encode())
    os._exit(0)
os.waitpid(child, 0)
print(os.read(reading, 10_000).decode())
scores.append(detector.predict(picture).pred_score)
print(json.dumps([scores[-1], torch.get_num_threads()]))
"""


def run(exported="", *more):
    """Fork in a process of its own, which is killed with its child if they wait for ever."""
    arguments = [sys.executable, "-c", FORK, str(PICTURES / "slate_crack.jpg"), str(exported), *more]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            out, _ = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("the child never returned") from None
    assert process.returncode == 0
    in_child, (in_parent, threads) = map(json.loads, out.splitlines())
    return in_child, in_parent, threads


@pytest.mark.parametrize("used", ["used", pytest.param("fresh", marks=pytest.mark.slow)])
def test_a_forked_process_scores_as_its_parent_does(used):
    in_child, in_parent, threads = run("", used)
    assert in_child == [pytest.approx(in_parent, abs=1e-6)] * (5 + (used == "used"))
    assert threads == 4  # the parent keeps its own


@pytest.mark.slow
def test_an_exported_file_scores_after_a_fork(tmp_path):
    export(Detector.from_pretrained("micro"), tmp_path / "micro.onnx")
    in_child, in_parent, _ = run(tmp_path / "micro.onnx", "used")
    assert in_child == [pytest.approx(in_parent, abs=1e-6)] * 6


@pytest.mark.parametrize(
    ("change", "says"), [({"compiled": True}, "compiled"), ({"device": torch.device("cuda:1")}, "on cuda:1")]
)
def test_what_cannot_work_after_a_fork_is_refused_at_once(change, says, tiny_clip, paper_case, monkeypatch):
    scorer = torch_scorer(tiny_clip, paper_case.prompts, image_size=70)
    detector = Detector(scorer)
    for name, value in change.items():
        setattr(scorer, name, value)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(
        AnomalyCLIPError, match=rf"loaded by another process.* {says} .*load it in each process"
    ):
        detector.predict(paper_case.images[0])
