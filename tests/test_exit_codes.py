"""Exit codes that tell: an error that nobody foresaw has its own, and says how to report it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anomalyclip.data.listing
from anomalyclip.errors import AnomalyCLIPError


@pytest.fixture
def fails_with(monkeypatch, tmp_path):
    """Make `prepare` raise an error inside, and keep tracebacks in this test's folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "kept"))
    monkeypatch.delenv("ANOMALYCLIP_TRACEBACK", raising=False)
    (tmp_path / "kept").mkdir()

    def set_error(error):
        def list_samples(*_args, **_options):
            raise error

        monkeypatch.setattr(anomalyclip.data.listing, "list_samples", list_samples)

    return set_error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ZeroDivisionError("a\nb"), "ZeroDivisionError: a b"),
        (EOFError(), "EOFError: EOFError"),  # click would take it for Ctrl-D and end with exit code 1
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "ModuleNotFoundError: No module named 'x'"),
    ],
)
def test_an_error_nobody_foresaw_is_exit_code_70_and_one_line_that_asks_for_a_report(
    error, says, fails_with, cli, tmp_path
):
    fails_with(error)
    done = cli("prepare", tmp_path)
    (kept,) = (tmp_path / "kept").iterdir()
    assert done.code == 70
    assert done.out == ""
    assert done.err == (
        f"error: internal error ({says}); please report it with the traceback: it is in {kept}; "
        "ANOMALYCLIP_TRACEBACK=1 shows it here\n"
    )
    text = kept.read_text()
    assert text.startswith("anomalyclip ")
    assert f"'prepare', '{tmp_path}'" in text
    assert "in list_samples\n    raise error" in text


def test_the_traceback_is_shown_on_request(fails_with, cli, tmp_path, monkeypatch):
    fails_with(ZeroDivisionError("division by zero"))
    monkeypatch.setenv("ANOMALYCLIP_TRACEBACK", "1")
    done = cli("prepare", tmp_path)
    assert done.code == 70
    assert "Traceback (most recent call last):" in done.err
    assert done.err.endswith("please report it with the traceback: it stands above\n")
    assert list((tmp_path / "kept").iterdir()) == []


def test_where_no_file_can_be_kept_the_line_says_how_to_get_the_traceback(fails_with, cli, tmp_path):
    (tmp_path / "kept").rmdir()
    fails_with(ZeroDivisionError("division by zero"))
    done = cli("prepare", tmp_path)
    assert done.code == 70
    assert (
        "please report it with the traceback: run the same command with ANOMALYCLIP_TRACEBACK=1" in done.err
    )


def test_too_little_memory_is_no_internal_error(fails_with, cli, tmp_path):
    fails_with(MemoryError())
    done = cli("prepare", tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "error: not enough memory" in done.err


def test_what_a_user_can_mend_stays_exit_code_2(fails_with, cli, tmp_path):
    fails_with(AnomalyCLIPError("no such thing"))
    done = cli("prepare", tmp_path)
    assert (done.code, done.err) == (2, "error: no such thing\n")
    assert cli("prepare").code == 2
    assert cli("prepare", "--no-such-option").code == 2
    assert cli("--help").code == 0


def test_a_model_that_fails_on_everything_is_an_internal_error(tmp_path, cli, monkeypatch, paper_case):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("anomalyclip.engines.torch.TorchScorer.__call__", lambda *_: 1 / 0)
    done = cli("predict", paper_case.images[0], "--backbone", "micro", "--output", tmp_path / "out")
    assert done.code == 70
    assert "internal error (ZeroDivisionError: division by zero)" in done.err


def test_the_command_itself_ends_with_70(tmp_path):
    code = (
        "import sys; sys.argv = ['anomalyclip', 'datasets']\n"
        "import anomalyclip.data.catalog as catalog\n"
        "def fail(*_): raise ZeroDivisionError\n"
        "catalog.catalog = fail\n"
        "from anomalyclip.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 70
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_ends_the_command_quietly_with_the_code_of_a_closed_pipe():
    read, write = os.pipe()
    os.close(read)
    for words in (["datasets"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "anomalyclip", *words], stdout=write, stderr=subprocess.PIPE, text=True
        )
        assert (done.returncode, done.stderr) == (141, ""), words
    os.close(write)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written_is_a_message_and_exit_code_2():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "anomalyclip", "datasets"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot print ([Errno 28] No space left on device)\n"


def test_the_readme_lists_every_code():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    listed = readme.split("Exit codes:")[1].split("\n\n")[0]
    for code in (
        "0 success",
        "1 finished",
        "2 stopped",
        "70 an internal error",
        "130 stopped by Ctrl-C",
        "141 nobody",
    ):
        assert code in " ".join(listed.split()), json.dumps(listed)
