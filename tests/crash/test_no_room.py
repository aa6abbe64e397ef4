"""A full disk, and a folder that may not be written to: one message, nothing half-written, and the way back is open."""

import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.commands import COMMANDS, Command, files_of, make_inputs
from tests.crash.server import Outcome, Server
from tests.crash.test_crash import check_what_is_there

pytestmark = pytest.mark.slow

EVERY_COMMAND = pytest.mark.parametrize("command", COMMANDS, ids=[command.name for command in COMMANDS])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("crash") / "inputs")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server") / "scratch")
    yield running
    running.close()


@contextmanager
def small_disk(folder: Path, kilobytes: int):
    """Mount a small file system, where that is allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def check_one_message(outcome: Outcome, *why: str) -> None:
    """The command is stopped by an error, and says so once; images that are damaged are named besides."""
    errors = [line for line in outcome.printed.splitlines() if line.startswith("error:")]
    stopped = [line for line in errors if any(reason in line for reason in why)]
    others = [line for line in errors if line not in stopped and "damaged.png" not in line]
    assert outcome.code == 2, outcome.printed
    assert (len(stopped), others) == (1, []), outcome.printed
    assert "Traceback" not in outcome.printed


@EVERY_COMMAND
@pytest.mark.parametrize("free", [0, 12])
def test_a_disk_that_is_full_ends_a_command_with_one_message_and_it_goes_on_when_there_is_room(
    command: Command, free, inputs, server, tmp_path
):
    words = command.words.format(**inputs).split()
    (tmp_path / "whole").mkdir()
    usual = server.run(words, tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    if sum(map(len, whole.values())) <= 1024 * free:
        pytest.skip("its files are smaller")
    with small_disk(tmp_path / "disk", 65536) as disk:
        (disk / "filler").write_bytes(bytes(1024 * (65536 - free)))
        full = server.run(words, disk)
        check_one_message(full, "No space left on device", "free some space")
        (disk / "filler").unlink()
        check_what_is_there(command, disk, whole)
        again = server.run(words, disk)
        assert again.code == usual.code, again.printed
        assert files_of(disk) == whole


@EVERY_COMMAND
@pytest.mark.parametrize("size", [64, 1500])
def test_a_limit_of_file_size_ends_a_command_likewise(command: Command, size, inputs, server, tmp_path):
    words = command.words.format(**inputs).split()
    (tmp_path / "whole").mkdir()
    server.run(words, tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    if max(map(len, whole.values())) <= size:
        pytest.skip("its files are smaller")
    (tmp_path / "limited").mkdir()
    check_one_message(server.run(words, tmp_path / "limited", file_size=size), "File too large")
    check_what_is_there(command, tmp_path / "limited", whole)
    server.run(words, tmp_path / "limited")
    assert files_of(tmp_path / "limited") == whole


@EVERY_COMMAND
def test_an_ordinary_user_without_rights_gets_one_message(command: Command, inputs, server, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    outcome = server.run(command.words.format(**inputs).split(), tmp_path / "closed", unprivileged=True)
    check_one_message(outcome, "Permission denied")
    assert list((tmp_path / "closed").iterdir()) == []


@EVERY_COMMAND
def test_a_read_only_file_system_gives_one_message_to_root_too(command: Command, inputs, server, tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        outcome = server.run(command.words.format(**inputs).split(), disk)
        check_one_message(outcome, "Read-only file system")
        assert list(disk.iterdir()) == []
