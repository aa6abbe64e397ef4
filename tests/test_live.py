"""Live sources: frames that come too fast are dropped and counted, and Ctrl-C ends a run with everything written."""

import json
import os
import signal
import socket
import subprocess
import sys
from itertools import islice
from threading import Event, Thread

import numpy as np
import pytest

from anomalyclip import Detector, DetectorSpec, predicting
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.inputs import ImageFile, read_list_file
from anomalyclip.readers import Live, frames, live, open_image
from tests.live_sources import camera, levels_of, rtsp, serving, transport_stream
from tests.toy_methods import Bright
from tests.videos import plain, uneven

av = pytest.importorskip("av")

STAMPS = list(uneven(12, steps=(0.02, 0.04, 0.1)))  # long enough for FFmpeg to be sure what it is
LEVELS = [20 + number % 50 * 4 for number in range(len(STAMPS))]


def toy(**options):
    return Detector(Bright(DetectorSpec(image_size=8)), **options)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    shots = [(time, plain(level)) for time, level in zip(STAMPS, LEVELS, strict=True)]
    return transport_stream(tmp_path_factory.mktemp("stream"), shots)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Frames are checked one by one here: none may be dropped but where a test says so."""
    monkeypatch.setattr(live, "QUEUE", 100)


@pytest.mark.parametrize("way", ["tcp", "rtsp"])
def test_a_stream_has_its_own_times_and_every_frame(way, stream):
    def send(connection, ended):
        connection.sendall(stream)

    with (
        serving(rtsp(stream) if way == "rtsp" else send) as port,
        Live(f"{way}://127.0.0.1:{port}/line", keep=3) as source,
    ):
        found = list(islice(frames(source.name), 100))
        assert [frame.time for frame in found] == STAMPS[:100]
        assert levels_of(frame.image for frame in found) == pytest.approx(LEVELS[:100], abs=3)
        assert [frame.id for frame in found[:2]] == [f"{source.name}#1", f"{source.name}#2"]
        assert levels_of([open_image(found[98].id)]) == pytest.approx([LEVELS[98]], abs=3)  # for its heat map
        with pytest.raises(InputError, match="#5: is gone, for the source is live"):
            open_image(found[4].id)
    with pytest.raises(InputError, match="no such file"):
        open_image(found[98].id)  # it is closed


def test_a_stream_over_udp_has_its_own_times_wherever_it_is_joined(stream):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ended = Event()

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            while not ended.is_set():  # nobody says when the receiver is there
                for start in range(0, len(stream), 7 * 188):
                    out.sendto(stream[start : start + 7 * 188], ("127.0.0.1", port))
                    ended.wait(0.002)

    sender = Thread(target=send, daemon=True)
    sender.start()
    try:
        with Live(f"udp://127.0.0.1:{port}") as source:
            found = list(islice(frames(source.name), 10))
    finally:
        ended.set()
        sender.join()

    levels = levels_of(frame.image for frame in found)
    first = int(np.abs(np.array(LEVELS) - levels[0]).argmin())
    assert levels == pytest.approx(LEVELS[first : first + 10], abs=3)
    steps = np.diff([frame.time for frame in found])
    assert len({round(step, 3) for step in steps} - {0.02, 0.04, 0.1}) == 0


def test_a_stream_that_ends_is_scored_to_its_end(stream):
    with (
        serving(lambda connection, ended: connection.sendall(stream)) as port,
        Live(f"tcp://127.0.0.1:{port}", every="1s") as source,
    ):
        found = [prediction.time for prediction in toy().stream([source.name])]
        due = [step for step in range(13) if step <= STAMPS[-1]]
        assert found == [next(stamp for stamp in STAMPS if stamp >= step) for step in due]


def test_a_camera_of_pictures_is_scored_with_everything_saved(tmp_path):
    with (
        serving(camera([10, 200, 30], lambda number: None)) as port,
        Live(f"http://127.0.0.1:{port}/video?token=SECRET") as source,
    ):
        run = predicting.predict(
            toy(), [ImageFile(source.name, "camera")], tmp_path / "out", save=["heatmap", "video", "csv"]
        )
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["pred_score"] for line in lines] == pytest.approx([10 / 255, 200 / 255, 30 / 255], abs=0.01)
    times = [line["time"] for line in lines]
    assert times[0] == 0
    assert times == sorted(times)  # those of arrival: pictures have no time stamps
    assert [line["files"]["heatmap"] for line in lines] == [
        f"heatmaps/camera#{number}_heatmap.png" for number in (1, 2, 3)
    ]
    with av.open(str(run.folder / "videos" / "camera.webm")) as file:
        assert len(list(file.decode(video=0))) == 3
    for file in run.folder.rglob("*"):
        assert not file.is_file() or b"SECRET" not in file.read_bytes()


def test_frames_that_come_too_fast_are_dropped_and_counted_and_the_newest_is_scored(stream, monkeypatch):
    monkeypatch.setattr(live, "QUEUE", 2)
    with (
        serving(lambda connection, ended: connection.sendall(stream)) as port,
        Live(f"tcp://127.0.0.1:{port}") as source,
    ):
        found = frames(source.name)
        scored = [next(found)]
        source.wait()  # a model that takes longer than the whole stream
        scored += list(found)
        assert len(scored) == 3
        assert source.dropped == len(STAMPS) - 3
        assert [frame.time for frame in scored[1:]] == STAMPS[-2:]


def test_a_source_that_sends_nothing_is_one_message(monkeypatch):
    monkeypatch.setattr(live, "_SECONDS", (0.3, 0.3))
    with (
        serving(lambda connection, ended: ended.wait()) as port,
        Live(f"tcp://127.0.0.1:{port}") as source,
        pytest.raises(InputError, match=r"cannot be read \(nothing came for 0.3 seconds"),
    ):
        list(frames(source.name))


def test_a_source_that_is_not_there_is_one_message_without_its_password():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Live(f"rtsp://user:SECRET@127.0.0.1:{port}/line") as source, pytest.raises(InputError) as caught:
        list(frames(source.name))
    assert str(caught.value).startswith(f"rtsp://127.0.0.1:{port}/line: cannot be read (Connection refused")
    assert "SECRET" not in str(caught.value)


def test_stopping_ends_the_frames(stream):
    arrived = Event()

    def send(connection, ended):
        connection.sendall(stream)
        arrived.set()
        ended.wait()

    with serving(send) as port, Live(f"tcp://127.0.0.1:{port}") as source:
        found = frames(source.name)
        next(found)
        source.stop()
        assert len(list(found)) < len(STAMPS) - 1


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "camera", "concat:a|b", "rtsp://", "/dev/null", "rtsp://a:b"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(AnomalyCLIPError, match="expected an address such as rtsp://camera/stream"):
        Live(address)


def test_an_address_is_followed_only_while_the_user_has_it_open(tmp_path):
    asked = []
    with serving(lambda connection, ended: asked.append(1)) as port:
        (tmp_path / "list.txt").write_text(f"tcp://127.0.0.1:{port}\nrtsp://127.0.0.1:{port}/line\n")
        run = predicting.predict(toy(), read_list_file(tmp_path / "list.txt"), tmp_path / "out")
    assert (run.scored, run.failed, asked) == (0, 2, [])


def test_options_for_files_make_no_sense_with_a_live_source(cli):
    done = cli("predict", "--live", "rtsp://camera/line", "--resume", "--backbone", "micro")
    assert done.complaints == [
        "error: --resume cannot be combined with --live: it has no files, and does not come again"
    ]
    done = cli("predict", "a.png", "--live", "rtsp://camera/line", "--backbone", "micro")
    assert done.complaints == ["error: a.png: --live takes the place of files; give one of them"]


@pytest.mark.slow
def test_ctrl_c_ends_a_live_run_with_everything_written(tmp_path):
    def between(number):
        Event().wait(0.05)  # the camera's rate

    output = tmp_path / "out"
    with serving(camera([number % 200 for number in range(100_000)], between)) as port:
        command = [
            "predict",
            "--live",
            f"http://127.0.0.1:{port}/video",
            "--backbone",
            "micro",
            "--output",
            output,
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "anomalyclip", *map(str, command), "--save", "video", "--save", "heatmap"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        lines = output / "predictions.jsonl"
        while process.poll() is None and (not lines.exists() or lines.read_bytes().count(b"\n") < 3):
            Event().wait(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(records) >= 3
    assert f"{len(records)} scored" in out
    assert (output / "index.html").exists()
    assert all((output / record["files"]["heatmap"]).is_file() for record in records)
    (video,) = map(json.loads, (output / "videos.jsonl").read_text().splitlines())
    assert video["frames"] == len(records)
    with av.open(str(output / video["files"]["video"])) as file:
        shown = [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]
    assert np.allclose(shown, [record["time"] for record in records], atol=2e-3)
    dropped = [line for line in err.splitlines() if "frames were dropped" in line]
    numbers = [int(record["image_path"].rpartition("#")[2]) for record in records]
    gaps = numbers[-1] - numbers[0] + 1 - len(numbers)
    assert bool(dropped) or gaps == 0  # what is missing between the scored frames is what was dropped
