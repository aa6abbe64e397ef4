"""Hands damaged files out to limited processes, and gathers what went wrong."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.fuzz.child import damaged_case, files_of, write_files
from tests.fuzz.target import Target

REGRESSIONS = Path(__file__).parent / "regressions"
ROOT = Path(__file__).parents[2]

PATIENCE = 120
"""Seconds without a sign of life after which a process hangs: it may wait for something, which costs no CPU time."""
_BATCH = 25

Job = dict[str, Any]
"""``target`` with ``seed`` and ``index``, or with the ``folder`` of a case."""


@dataclass(frozen=True)
class Fault:
    """A damaged file that was not refused as it should be."""

    job: Job
    problem: str


def make_corpus(folder: Path, targets: Iterable[Target]) -> Path:
    """Write the real files of the targets."""
    for target in targets:
        (folder / target.name).mkdir(parents=True)
        target.make(folder / target.name)
    return folder


def mutations(targets: Sequence[Target], *, seed: int, count: int = 10_000) -> list[Job]:
    """Return jobs: `count` in all, shared among the targets."""
    ends = [0, *accumulate(target.share for target in targets)]
    bounds = [round(count * end / ends[-1]) for end in ends]
    return [
        {"target": target.name, "seed": seed, "index": index}
        for target, start, end in zip(targets, bounds, bounds[1:], strict=False)
        for index in range(end - start)
    ]


def regressions() -> list[Job]:
    """Return the cases that were once read wrongly."""
    return [
        {"target": target.name, "folder": str(case)}
        for target in sorted(REGRESSIONS.iterdir())
        for case in sorted(target.iterdir())
    ]


def hunt(
    jobs: Sequence[Job],
    corpus: Path | None = None,
    *,
    processes: int = 2,
    targets: str = "tests.fuzz.targets:TARGETS",
) -> list[Fault]:
    """Read the damaged files of all jobs, and return those that were not refused as they should be."""
    batches: Queue[list[Job]] = Queue()
    for start in range(0, len(jobs), _BATCH):
        batches.put(list(jobs[start : start + _BATCH]))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        places = [Path(work, str(number)) for number in range(processes)]
        with ThreadPoolExecutor(processes) as pool:
            found = pool.map(
                lambda place: list(_worker(batches, corpus or Path(work), place, targets)), places
            )
            faults = [fault for several in found for fault in several]
    return sorted(faults, key=lambda fault: jobs.index(fault.job))


def _worker(batches: "Queue[list[Job]]", corpus: Path, place: Path, targets: str) -> Iterable[Fault]:
    child, lives = None, 0
    try:
        while True:
            try:
                batch = batches.get_nowait()
            except Empty:
                return
            while batch:
                if child is None:
                    lives += 1
                    child = _Child(corpus, place / str(lives), targets)
                at, problems, why_dead = child.read(batch)
                yield from problems
                if why_dead is None:
                    break
                yield Fault(batch[at], why_dead)
                batch, child = batch[at + 1 :], None
    finally:
        if child is not None:
            child.close()


class _Child:
    def __init__(self, corpus: Path, place: Path, targets: str) -> None:
        place.mkdir(parents=True)
        self._log = (place / "stderr.txt").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child", str(corpus), str(place), targets],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(place), "PYTHONWARNINGS": "ignore"},
        )
        self._unread = b""

    def read(self, batch: list[Job]) -> tuple[int, list[Fault], str | None]:
        """Return the last job that was begun, faults, and why the process is dead, if it is."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(batch).encode() + b"\n")
        self._process.stdin.flush()
        at, faults = 0, []
        while True:
            line = self._line()
            if line is None:
                return at, faults, self._end()
            answer = json.loads(line)
            at = answer.get("begin", at)
            if "problem" in answer:
                faults.append(Fault(batch[at], answer["problem"]))
            if "end" in answer:
                return at, faults, None

    def _line(self) -> bytes | None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], PATIENCE)
            content = os.read(pipe, 1 << 16) if ready else b""
            if not content:
                return None
            self._unread += content
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _end(self) -> str:
        hung = self._process.poll() is None and not select.select([self._process.stdout], [], [], 0)[0]
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()[-300:]
        self.close(kill=True)
        code = self._process.returncode
        if hung:
            return f"hangs: no answer within {PATIENCE} s; {said}"
        names = {signal.SIGXCPU: "takes too long", signal.SIGKILL: "was killed"}
        ended = (
            names.get(signal.Signals(-code), signal.Signals(-code).name) if code < 0 else f"exit code {code}"
        )
        return f"ends the process ({ended}); {said}"

    def close(self, *, kill: bool = False) -> None:
        assert self._process.stdin is not None
        if kill:
            self._process.kill()
        self._process.communicate()
        self._log.close()


def keep(fault: Fault, corpus: Path, folder: Path, targets: Sequence[Target]) -> Path:
    """Write the damaged files of a fault below a folder, as they would lie in `regressions/`."""
    job = fault.job
    patterns = next(target.damaged for target in targets if target.name == job["target"])
    if "folder" in job:
        files, name = files_of(Path(job["folder"])), Path(job["folder"]).name
    else:
        files = damaged_case(corpus, job["target"], patterns, job["seed"], job["index"])
        name = f"seed-{job['seed']}-{job['index']}"
    write_files(folder / job["target"] / name, files)
    return folder / job["target"] / name


def report(faults: Sequence[Fault], corpus: Path, kept: Path, targets: Sequence[Target]) -> str:
    """Return what went wrong, each kind once, with the place of its first file."""
    kinds: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        kind = fault.problem.rpartition(" at ")[2] if " at " in fault.problem else fault.problem[:40]
        kinds[fault.job["target"], kind].append(fault)
    lines = [f"{len(faults)} damaged files were not refused with one message:"]
    for (target, _), several in sorted(kinds.items(), key=lambda item: -len(item[1])):
        first = several[0]
        lines.append(
            f"{len(several)} x {target} {first.job.get('seed')}/{first.job.get('index')}: {first.problem}"
        )
        lines.append(f"    {keep(first, corpus, kept, targets)}")
    lines.append("Mend the reader, then move the folder named above into tests/fuzz/regressions/.")
    return "\n".join(lines)
