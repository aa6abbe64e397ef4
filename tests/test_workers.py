"""Several processes: the results are those of one, whatever happens to them."""

import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalyclip import AnomalyCLIPError, AnomalyCLIPWarning, DetectorSpec, predict
from anomalyclip.workers import Workers
from tests.crash.commands import files_of

pytestmark = pytest.mark.slow

SPEC = DetectorSpec("micro", image_size=48)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures, a file of three pages, one that is broken, and after them deep ones whose range is assumed."""
    folder = tmp_path_factory.mktemp("workers") / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    pages = [Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(folder / "20.tif", save_all=True, append_images=pages[1:])
    (folder / "21 broken.png").write_bytes(b"torn")
    for number, highest in ((50, 4000), (51, 3000), (52, 60000), *((n, 2000) for n in range(53, 80))):
        deep = rng.integers(0, highest, (40, 40), dtype=np.uint16)
        deep[0, 0] = highest
        Image.fromarray(deep).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def workers():
    with Workers(SPEC, 2, threshold=0.5) as running:
        yield running


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    return predict(SPEC.load(threshold=0.5), images, tmp_path_factory.mktemp("whole") / "out", save=["mask"])


def differing(one, other):
    one, other = files_of(one), files_of(other)
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def test_the_results_are_those_of_one_process_byte_for_byte(images, workers, whole, tmp_path):
    with pytest.warns(AnomalyCLIPWarning, match=r"scaled from 0 to 4095, which is assumed from .*50\.png"):
        run = predict(workers, images, tmp_path / "out", save=["mask"])
    assert (
        (run.scored, run.failed, run.anomalous)
        == (whole.scored, whole.failed, whole.anomalous)
        == (72, 2, run.anomalous)
    )
    assert differing(whole.folder, tmp_path / "out") == []
    assert (
        "52.png: values from 31 to 60000, but 0 to 4095 was assumed"
        in (tmp_path / "out" / "errors.jsonl").read_text()
    )


def test_a_run_is_resumed_by_other_processes_and_by_one(images, workers, whole, tmp_path):
    predict(workers, images, tmp_path / "out", save=["mask"])
    file = tmp_path / "out" / "predictions.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    middle = next(n for n, line in enumerate(lines) if b"20.tif#3" in line)
    for detector in (workers, SPEC.load(threshold=0.5)):
        file.write_bytes(b"".join(lines[:middle]))
        run = predict(detector, images, tmp_path / "out", save=["mask"], resume=True)
        assert (run.scored, run.skipped) == (len(lines) - middle, middle)
        assert file.read_bytes() == b"".join(lines)


@contextmanager
def killing(workers, victims, what, total):
    """A progress bar that kills a process that has work after 10 images, and another one after 20."""
    count = 0

    def advance():
        nonlocal count
        count += 1
        if count >= 10 * (len(victims) + 1) and len(victims) < 2:
            busy = [worker.process.pid for worker in workers._workers if worker.parts]
            for pid in [pid for pid in busy if pid not in victims][:1]:
                victims.append(pid)
                os.kill(pid, signal.SIGKILL)

    yield advance


def test_a_process_that_is_killed_loses_and_repeats_nothing(images, whole, tmp_path):
    victims = []
    with Workers(SPEC, 2, threshold=0.5) as workers:
        track = partial(killing, workers, victims)
        with pytest.warns(
            AnomalyCLIPWarning, match=r"worker \d was lost \(SIGKILL\): its images are scored again"
        ):
            run = predict(workers, images, tmp_path / "out", save=["mask"], track=track)
    assert len(victims) == 2
    assert (run.scored, run.failed) == (whole.scored, whole.failed)
    assert differing(whole.folder, tmp_path / "out") == []


class Deadly:
    """What kills every process that opens it."""

    def __str__(self):
        return "deadly.png"

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


def test_images_that_kill_three_processes_are_named(images, workers):
    paths = [str(path) for path in sorted(images.glob("0*.png"))]
    with pytest.raises(AnomalyCLIPError, match=r"3 processes were lost \(SIGKILL\) .*deadly.png\): if"):
        list(workers.stream([paths[0], Deadly()]))
    found = [prediction.image_path for prediction in workers.stream(paths)]
    assert found == paths


def test_a_stream_that_is_left_does_not_disturb_the_next(images, workers):
    paths = [str(path) for path in sorted(images.glob("[0-3]?.png"))]
    next(workers.stream(reversed(paths)))
    assert [prediction.image_path for prediction in workers.stream(paths)] == paths


def test_an_endless_source_is_read_only_as_far_as_it_is_needed(images, workers):
    given = []

    def endless():
        while True:
            given.append(1)
            yield str(images / "00.png")

    stream = workers.stream(endless(), batch_size=2)
    assert [next(stream).image_path for _ in range(30)] == [str(images / "00.png")] * 30
    stream.close()
    assert len(given) < 150


def test_what_is_wrong_is_said_as_in_one_process(images, workers, tmp_path):
    with pytest.raises(AnomalyCLIPError, match="21 broken.png: not an image"):
        list(workers.stream([images / "00.png", images / "21 broken.png"]))
    with pytest.raises(AnomalyCLIPError, match="batch size 0"):
        list(workers.stream([], batch_size=0))
    with pytest.raises(ZeroDivisionError):
        list(workers.stream(str(images / f"{1 // (3 - n)}0.png") for n in range(5)))
    nothing = Workers(DetectorSpec("micro", prompts=str(tmp_path / "none.pth")), 1)
    with pytest.raises(AnomalyCLIPError, match=r"none\.pth"), nothing:
        pass
    with pytest.raises(AnomalyCLIPError, match="use Workers in a with block"):
        nothing.identity()


def living(group):
    """The command lines of the processes of a group: those of workers say so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append((folder / "cmdline").read_text().replace("spawn_main", "worker"))
    return " ".join(found)


def test_ctrl_c_ends_all_processes_and_the_run_can_be_resumed(images, whole, tmp_path):
    words = [
        "predict",
        images,
        "--backbone",
        "micro",
        "--image-size",
        48,
        "--threshold",
        0.5,
        "--save",
        "mask",
    ]
    for attempt in range(5):  # on a busy machine the run may be over before it is stopped
        output = tmp_path / f"out {attempt}"
        command = [sys.executable, "-m", "anomalyclip", *map(str, words), "--output", str(output)]
        command += ["--processes", "2"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        lines = output / "predictions.jsonl"
        while not (lines.exists() and lines.stat().st_size) and process.poll() is None:
            select.select([], [], [], 0.01)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        said = process.communicate()[1]
        if process.returncode != 1:
            break
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("error: stopped; results already written are kept")
    assert "Traceback" not in said
    while "worker" in living(process.pid):  # they end when they see that their parent has
        select.select([], [], [], 0.01)
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert again.returncode == 1, again.stderr  # two images cannot be used
    assert [n for n in differing(whole.folder, output) if not n.startswith("index")] == []
