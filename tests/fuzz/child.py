"""Reads damaged files in a process with limits: ``python -m tests.fuzz.child CORPUS WORK TARGETS``.

Jobs come as lines of JSON. Before each one its number goes out, and after it what went wrong, if anything: a process
that dies or hangs has named its job.
"""

import json
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from random import Random

from tests.fuzz.mutations import Files, damage

ADDRESS_SPACE = 4 << 30
"""Bytes beyond what the process has once everything is imported."""
LONGEST_MESSAGE = 3000


def damaged_case(corpus: Path, target: str, patterns: tuple[str, ...], seed: int, index: int) -> Files:
    """Return damaged file number `index` of a target: the same for the same corpus and seed."""
    chance = Random(f"{seed}/{target}/{index}")
    files = files_of(chance.choice(sorted((corpus / target).iterdir())))
    names = sorted(name for name in files if any(fnmatch(name, pattern) for pattern in patterns))
    return damage(files, chance, names)


def files_of(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_files(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def main(corpus: Path, work: Path, listed: str) -> None:
    """Do all jobs; `listed` says where the list of targets is, as ``module:name``."""
    module, _, name = listed.partition(":")
    targets = {target.name: target for target in getattr(import_module(module), name)}
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print
    warnings.simplefilter("ignore")
    room = work / "room"
    (work / "here").mkdir(parents=True)
    os.chdir(work / "here")
    limit_memory()
    for line in sys.stdin:
        for number, job in enumerate(json.loads(line)):
            target = targets[job["target"]]
            if "folder" in job:
                files = files_of(Path(job["folder"]))
            else:
                files = damaged_case(corpus, target.name, target.damaged, job["seed"], job["index"])
            print(json.dumps({"begin": number}), file=answers)
            limit_time(target.seconds)
            problem = "\n".join(problems(target, files, room))
            if problem:
                print(json.dumps({"problem": problem}), file=answers)
        print(json.dumps({"end": True}), file=answers)


def problems(target, files: Files, room: Path) -> Iterator[str]:
    """Read damaged files, and say what is wrong with how that went."""
    shutil.rmtree(room, ignore_errors=True)
    (room / "case").mkdir(parents=True)
    (room / "neighbour").write_text("not of this case")
    write_files(room / "case", files)
    entry = room / "case" if target.entry == "." else next(iter(sorted((room / "case").glob(target.entry))))
    before = peak_memory(reset=True)
    try:
        target.read(entry)
    except target.error as error:
        if not str(error).strip() or len(str(error)) > LONGEST_MESSAGE:
            yield f"a message of {len(str(error))} characters: {str(error)[:200]!r}"
        if target.named and str(room / "case") not in str(error):
            yield f"does not name the file: {type(error).__name__}: {str(error)[:200]}"
    except BaseException as error:
        yield described(error)
    grown = peak_memory() - before
    if grown > target.memory:
        yield f"took {grown:.0f} MB, more than {target.memory}"
    if sorted(os.listdir(room)) != ["case", "neighbour"] or os.listdir():
        yield f"touched what is not its own: {os.listdir(room)} {os.listdir()}"


def described(error: BaseException) -> str:
    """Return an exception and the places in the package that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "anomalyclip" in frame.filename]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-3:]))
    return f"{type(error).__name__}: {str(error)[:200]} at {places}"


def limit_memory() -> None:
    """An allocation beyond all reason fails, instead of taking the machine with it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def limit_time(seconds: int) -> None:
    """Let the process be killed when it has used so much more CPU time."""
    soft = int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def peak_memory(*, reset: bool = False) -> float:
    """Return the most megabytes that the process had at once since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
