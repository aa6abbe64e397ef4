"""`anomalyclip watch`: complete files only, each once, hooks for anomalous ones, restarts, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image

from anomalyclip import Detector, DetectorSpec, Threshold
from anomalyclip.alerts import Alerts, Command, Webhook
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.watching import Arrivals, Pace, watch
from tests.toy_methods import Bright

SOON = Pace(0.01, until_idle=0)


@pytest.fixture
def inbox(tmp_path):
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def detector():
    """Its score is the brightness."""
    return Detector(Bright(DetectorSpec(image_size=8)), threshold=Threshold(0.5, 0.5))


def picture(path, brightness):
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (8, 8), round(255 * brightness)).save(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(images):
    return [image.name for image in images]


def test_a_file_is_complete_when_two_looks_see_the_same(inbox):
    arrivals = Arrivals(inbox)
    with (inbox / "slow.png").open("wb", buffering=0) as file:
        file.write(b"one")
        assert arrivals.look() == []
        file.write(b"two")
        assert arrivals.look() == []
        assert names(arrivals.look()) == ["slow.png"]
    assert arrivals.look() == []


def test_an_empty_file_is_not_complete(inbox):
    (inbox / "a.png").touch()
    arrivals = Arrivals(inbox)
    assert [arrivals.look(), arrivals.look()] == [[], []]
    assert arrivals.waiting == 1


@pytest.mark.skipif(os.name != "posix", reason="only there does a rename leave a trace")
def test_a_file_that_is_renamed_into_place_is_seen_at_once(inbox, tmp_path):
    (tmp_path / "part").write_bytes(b"whole")
    os.utime(tmp_path / "part", (1e9, 1e9))
    os.rename(tmp_path / "part", inbox / "a.png")
    assert names(Arrivals(inbox).look()) == ["a.png"]


def test_files_come_in_the_order_in_which_they_were_written_and_others_are_counted(inbox):
    for age, name in enumerate(["b.png", "line 2/a.png", "notes.txt", ".hidden.png"]):
        (inbox / name).parent.mkdir(exist_ok=True)
        (inbox / name).write_bytes(b"...")
        os.utime(inbox / name, (1e9 - age, 1e9 - age))
    skipped = Counter()
    arrivals = Arrivals(inbox, skipped=skipped)
    assert names([*arrivals.look(), *arrivals.look()]) == ["line 2/a.png", "b.png"]
    assert skipped == {".txt": 1}


def test_what_arrives_is_scored_once_and_a_restart_goes_on(inbox, tmp_path, detector):
    picture(inbox / "dark.png", 0.2)
    picture(inbox / "sub" / "bright.png", 0.8)
    assert watch(detector, inbox, tmp_path / "run", pace=SOON).scored == 2
    picture(inbox / "late.png", 0.6)
    run = watch(detector, inbox, tmp_path / "run", pace=SOON)
    assert (run.scored, run.skipped) == (1, 0)
    records = lines(tmp_path / "run" / "predictions.jsonl")
    assert [(Path(record["image_path"]).name, record["pred_label"]) for record in records] == [
        ("dark.png", False),
        ("bright.png", True),
        ("late.png", True),
    ]
    assert "3</b><span>scored" in (tmp_path / "run" / "index.html").read_text()


def test_a_file_that_could_not_be_used_is_tried_again_when_it_changes(inbox, tmp_path, detector):
    picture(inbox / "whole.png", 0.9)
    whole = (inbox / "whole.png").read_bytes()
    (inbox / "torn.png").write_bytes(whole[:40])
    (inbox / "bad.png").write_bytes(b"no image")
    told, stop = [], Event()

    def tell(message):
        told.append(message)
        if len(told) == 2:
            (inbox / "torn.png").write_bytes(whole)

    run = watch(
        detector,
        inbox,
        tmp_path / "run",
        pace=Pace(0.01),
        stop=stop,
        tell=tell,
        on_scored=lambda record: record["image_path"].endswith("torn.png") and stop.set(),
    )
    assert (run.scored, run.failed) == (2, 1)
    assert [Path(line["image_path"]).name for line in lines(tmp_path / "run" / "errors.jsonl")] == ["bad.png"]


def test_results_inside_the_watched_folder_are_not_scored(inbox, detector):
    picture(inbox / "a.png", 0.9)
    for _ in range(2):
        watch(detector, inbox, inbox / "run", pace=SOON)
    assert len(lines(inbox / "run" / "predictions.jsonl")) == 1
    with pytest.raises(AnomalyCLIPError, match="watched itself"):
        watch(detector, inbox, inbox, pace=SOON)


def test_a_folder_that_cannot_be_read_is_named_once_and_tried_again(inbox, tmp_path, detector):
    picture(inbox / "a.png", 0.9)
    told, stop = [], Event()
    moved = tmp_path / "away"

    def on_scored(record):
        if "away" not in record["image_path"] and not told:
            os.rename(inbox, moved)

    def tell(message):
        told.append(message)
        os.rename(moved, inbox)
        picture(inbox / "b.png", 0.1)

    watch(
        detector,
        inbox,
        tmp_path / "run",
        pace=Pace(0.01),
        stop=stop,
        tell=tell,
        on_scored=lambda record: stop.set() if told else on_scored(record),
    )
    assert told == [f"{inbox}: cannot be read (No such file or directory); trying again"]
    assert [Path(line["image_path"]).name for line in lines(tmp_path / "run" / "predictions.jsonl")] == [
        "a.png",
        "b.png",
    ]


def writer_of(path):
    """A command that appends its arguments and its input to a file."""
    code = f"import json, sys; open({str(path)!r}, 'a').write(json.dumps([*sys.argv[1:], sys.stdin.read()]) + '\\n')"
    return Command((sys.executable, "-c", code, "line 3"))


def test_a_command_gets_the_path_and_the_score_as_arguments_and_no_shell_sees_them(inbox, tmp_path, detector):
    name = "$(touch x); <b> 'a.png"
    picture(inbox / name, 0.8)
    picture(inbox / "fine.png", 0.2)
    watch(detector, inbox, tmp_path / "run", pace=SOON, hooks=[writer_of(tmp_path / "said")])
    ((first, path, score, line),) = lines(tmp_path / "said")
    assert (first, path, score) == ("line 3", str(inbox / name), "0.8000")
    assert json.loads(line) == lines(tmp_path / "run" / "predictions.jsonl")[0 if "$" in line else 1]
    (alert,) = lines(tmp_path / "run" / "alerts.jsonl")
    assert (alert["hook"], alert["error"]) == (f"command {sys.executable}", None)


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C goes to a group of processes there")
def test_ctrl_c_is_not_for_the_command_that_runs(tmp_path):
    code = f"import os; open({str(tmp_path / 'said')!r}, 'w').write(str(os.getsid(0) == os.getpid()))"
    Command((sys.executable, "-c", code)).call(RECORD, Event())
    assert (tmp_path / "said").read_text() == "True"


def test_a_failing_hook_is_named_and_stops_nothing(inbox, tmp_path, detector):
    picture(inbox / "a.png", 0.8)
    picture(inbox / "b.png", 0.9)
    told = []
    failing = Command((sys.executable, "-c", "import sys; sys.exit('line is\\nblocked')"))
    run = watch(detector, inbox, tmp_path / "run", pace=SOON, hooks=[failing], tell=told.append)
    assert run.scored == 2
    assert [f"{inbox}/{name}.png: exit code 1: blocked" in "".join(told) for name in "ab"] == [True, True]
    assert [line["error"] for line in lines(tmp_path / "run" / "alerts.jsonl")] == [
        "exit code 1: blocked"
    ] * 2
    again = watch(detector, inbox, tmp_path / "run", pace=SOON, hooks=[failing], tell=told.append)
    assert (again.scored, len(told)) == (0, 2)


def test_a_call_without_a_line_is_made_when_the_run_goes_on(inbox, tmp_path, detector):
    hook = writer_of(tmp_path / "said")
    for number in range(3):
        picture(inbox / f"{number}.png", 0.8)
        os.utime(inbox / f"{number}.png", (1e9 + number, 1e9 + number))
    watch(detector, inbox, tmp_path / "run", pace=SOON, hooks=[hook])
    path = tmp_path / "run" / "alerts.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + whole[1][:20])  # killed while it wrote the second
    (tmp_path / "said").unlink()
    watch(detector, inbox, tmp_path / "run", pace=SOON, hooks=[hook])
    assert [Path(said[1]).name for said in lines(tmp_path / "said")] == ["1.png", "2.png"]
    assert path.read_bytes().splitlines(keepends=True) == whole


def test_the_first_hook_is_not_called_for_what_was_there_before_it(inbox, tmp_path, detector):
    picture(inbox / "old.png", 0.8)
    watch(detector, inbox, tmp_path / "run", pace=SOON)
    picture(inbox / "new.png", 0.8)
    for _ in range(2):
        watch(detector, inbox, tmp_path / "run", pace=SOON, hooks=[writer_of(tmp_path / "said")])
    assert [Path(said[1]).name for said in lines(tmp_path / "said")] == ["new.png"]


def test_what_is_left_when_it_is_stopped_is_called_for_the_next_time(tmp_path):
    (tmp_path / "predictions.jsonl").touch()
    began, go_on = Event(), Event()

    class Slow:
        name = "slow"

        def call(self, record, stop):
            began.set()
            go_on.wait()

    alerts = Alerts(tmp_path, [Slow()], print)
    with alerts:
        for name in ("a.png", "b.png", "c.png"):
            alerts.add({"image_path": name, "pred_score": 0.9, "pred_label": True})
        began.wait()
        closing = Thread(target=alerts.close, kwargs={"finish": False})
        closing.start()
        while not alerts._stop.is_set():
            pass
        go_on.set()
        closing.join()
    assert (alerts.called, alerts.left) == (1, 2)
    assert [line["image_path"] for line in lines(tmp_path / "alerts.jsonl")] == ["a.png"]


@contextmanager
def web(*answers):
    """A server that answers with these statuses; gives its address, and what was posted."""
    posted, left = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status = left.pop(0)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?key=secret", posted
    finally:
        server.shutdown()
        server.server_close()


RECORD = {"image_path": "a.png", "pred_score": 0.9, "pred_label": True}


def test_a_webhook_is_posted_again_until_it_is_taken():
    with web(503, 429, 200) as (url, posted):
        Webhook(url, pause=0.001).call(RECORD, Event())
    assert posted == [RECORD] * 3


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([500] * 4, "answered 500 (4 attempts)"),
        ([403], "answered 403 (1 attempt)"),
        ([302], "answered 302 (1 attempt)"),
    ],
)
def test_a_webhook_gives_up(answers, says):
    with web(*answers) as (url, posted), pytest.raises(AnomalyCLIPError) as raised:
        Webhook(url, pause=0.001).call(RECORD, Event())
    assert str(raised.value) == says
    assert len(posted) == len(answers)


def test_a_webhook_that_nobody_hears_is_named_without_its_secret(inbox, tmp_path, detector):
    with web() as (url, _):
        pass
    picture(inbox / "a.png", 0.9)
    told = []
    hook = Webhook(url, pause=0.001)
    watch(detector, inbox, tmp_path / "run", pace=SOON, hooks=[hook], tell=told.append)
    assert told == [
        f"webhook http://127.0.0.1, for {inbox}/a.png: [Errno 111] Connection refused (4 attempts)"
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--run", "no-such-program-anywhere"], "no such program"),
        (["--run", "'open"], "No closing quotation"),
        (["--webhook", "file:///etc/passwd"], "http://"),
        (["--run", "echo"], "set a threshold"),
        (["--output", "inbox"], "watched itself"),
    ],
)
def test_what_cannot_work_is_refused_at_once(cli, inbox, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    done = cli("watch", "inbox", "--backbone", "micro", "--output", "run", "--until-idle", 0, *words)
    assert (done.code, says in done.err) == (2, True), done.err
    assert not (tmp_path / "run").exists()


def test_the_command_line_prints_each_image_and_counts(cli, inbox, tmp_path):
    picture(inbox / "a.png", 0.5)
    (inbox / "notes.txt").write_text("a note")
    done = cli(
        *("watch", inbox, "--backbone", "micro", "--threshold", 0.0, "--output", tmp_path / "run"),
        *("--until-idle", 0, "--interval", 0.01, "--save", "mask"),
    )
    assert done.code == 0, done.err
    first, *_, counts, _ = done.out.splitlines()
    assert first.split()[1:] == ["anomalous", f"{inbox}/a.png"]
    assert counts.startswith("1 scored, 1 anomalous, 1 other files skipped (1 .txt)")
    assert np.asarray(Image.open(tmp_path / "run" / "masks" / "a_mask.png")).shape == (8, 8)


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly_and_after_a_kill_nothing_is_scored_twice(inbox, tmp_path):
    """A real process: killed after its first image, then stopped by Ctrl-C."""
    program = [sys.executable, "-m", "anomalyclip", "watch", str(inbox), "--backbone", "micro"]
    program += ["--threshold", "0", "--output", str(tmp_path / "run"), "--interval", "0.05"]

    def start():
        return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    picture(inbox / "a.png", 0.2)
    first = start()
    assert first.stdout.readline().rstrip().endswith("a.png")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    picture(inbox / "b.png", 0.8)
    second = start()
    assert second.stdout.readline().rstrip().endswith("b.png")
    second.send_signal(signal.SIGINT)
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert "1 scored" in out
    assert len(lines(tmp_path / "run" / "predictions.jsonl")) == 2
    assert "2</b><span>scored" in (tmp_path / "run" / "index.html").read_text()
