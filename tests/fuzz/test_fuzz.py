"""Damaged files are refused with one message, and the hunt for those that are not finds them."""

import os
import signal
from pathlib import Path

import pytest

from anomalyclip.errors import AnomalyCLIPError
from tests.fuzz.child import damaged_case
from tests.fuzz.hunt import hunt, make_corpus, mutations, regressions, report
from tests.fuzz.target import Target


def test_what_was_once_read_wrongly_is_refused_with_one_message():
    faults = hunt(regressions(), processes=1)
    assert [(fault.job["folder"], fault.problem) for fault in faults] == []


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused_with_one_message_each(tmp_path):
    from tests.fuzz.targets import TARGETS

    corpus = make_corpus(tmp_path / "corpus", TARGETS)
    jobs = mutations(TARGETS, seed=15)
    assert len(jobs) == 10_000
    faults = hunt(jobs, corpus)
    # The temporary folder stays for a while: what is named in the report can be looked at.
    assert not faults, report(faults, corpus, tmp_path / "faults", TARGETS)


# --- the hunt itself


def write_one(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "one" / "file.txt").write_text("content")


def raise_foreign(path: Path) -> None:
    raise KeyError("not foreseen")


def refuse(path: Path) -> None:
    raise AnomalyCLIPError(f"{path}: damaged")


def refuse_without_name(path: Path) -> None:
    raise AnomalyCLIPError("damaged")


def grow(path: Path) -> None:
    assert len(b"x" * (400 << 20))


def grow_endlessly(path: Path) -> None:
    assert bytearray(1 << 40)


def loop(path: Path) -> None:
    while True:
        pass


def die(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def delete_the_neighbour(path: Path) -> None:
    (path.parents[1] / "neighbour").unlink()


def plant(path: Path) -> None:
    Path("PLANTED").touch()


READERS = {
    raise_foreign: "KeyError: 'not foreseen' at ",
    refuse_without_name: "does not name the file",
    grow: "MB, more than 300",
    grow_endlessly: "MemoryError",
    loop: "ends the process (takes too long)",
    die: "ends the process (SIGSEGV)",
    delete_the_neighbour: "touched what is not its own",
    plant: "touched what is not its own",
}

BROKEN = [
    Target("refuse", 1, write_one, refuse),
    *(Target(read.__name__, 1, write_one, read, seconds=1) for read in READERS),
]


@pytest.mark.slow
def test_whatever_is_not_a_message_that_names_the_file_is_found(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", BROKEN)
    jobs = mutations(BROKEN, seed=0, count=2 * len(BROKEN))
    faults = hunt(jobs, corpus, processes=1, targets="tests.fuzz.test_fuzz:BROKEN")
    found = {fault.job["target"]: fault.problem for fault in faults}
    assert found.keys() == {read.__name__ for read in READERS}
    for read, expected in READERS.items():
        assert expected in found[read.__name__]
    told = report(faults, corpus, tmp_path / "kept", BROKEN)
    assert told.startswith(f"{2 * len(READERS)} damaged files")
    assert (tmp_path / "kept" / "die" / "seed-0-0" / "file.txt").is_file()


def test_a_seed_gives_the_same_damage_every_time(tmp_path):
    write_one((tmp_path / "text").mkdir() or tmp_path / "text")
    first, again, other = (damaged_case(tmp_path, "text", ("*",), seed, 3) for seed in (1, 1, 2))
    assert first == again != other
