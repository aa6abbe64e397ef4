"""Runs commands in processes that are forked from one which has imported everything: ``python -m tests.crash.server``.

A run starts within milliseconds, and can be killed at a chosen change of the file system or after a chosen time, or
given another user or a limit of file size.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds after which a run hangs."""

_CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "os.chmod",
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Parameters
    ----------
    code : int
        Exit code; minus the signal if it was killed.
    changes : int
        Changes of the file system that it made, as far as Python made them.
    seconds : float
        How long it took.
    printed : str
        On both streams.
    """

    code: int
    changes: int
    seconds: float
    printed: str


class Server:
    """Starts the process from which the runs are forked.

    Parameters
    ----------
    scratch : Path
        For what the runs print and count.
    """

    def __init__(self, scratch: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.server", str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(scratch / "cache")},
        )

    def run(self, words: Sequence[object], folder: Path, **limits: Any) -> Outcome:
        """Run ``anomalyclip WORDS`` in a folder; see `Limits`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"words": [str(word) for word in words], "folder": str(folder), "limits": limits}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


@dataclass(frozen=True)
class Limits:
    """What a run may do.

    Parameters
    ----------
    at_change : int, optional
        Kill it just before this change of the file system, counted from 1.
    after : float, optional
        Kill it after so many seconds.
    user : int, optional
        Run it as this user and group.
    file_size : int, optional
        Bytes that a file may have; writing more fails.
    environment : tuple of str, optional
        Variables with their values.
    """

    at_change: int | None = None
    after: float | None = None
    user: int | None = None
    file_size: int | None = None
    environment: dict[str, str] | None = None


def serve(scratch: Path) -> None:
    """Run jobs from standard input."""
    import_everything()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    scratch.mkdir(parents=True, exist_ok=True)
    for line in sys.stdin:
        job = json.loads(line)
        limits = Limits(**job["limits"])
        count = os.memfd_create("changes")
        with (scratch / "printed.txt").open("w+b") as printed:
            begun = time.perf_counter()
            child = os.fork()
            if child == 0:
                run(job["words"], job["folder"], limits, printed.fileno(), count)
            code = wait(child, limits.after or PATIENCE)
            seconds = time.perf_counter() - begun
            printed.seek(0)
            text = printed.read().decode(errors="replace")
        changes = os.fstat(count).st_size  # a byte each
        os.close(count)
        print(
            json.dumps({"code": code, "changes": changes, "seconds": seconds, "printed": text}), file=answers
        )


MODULES = (
    "matplotlib.figure",
    "onnx",
    "onnxscript",
    "networkx",
    "scipy.ndimage",
    "scipy.stats",
    "torch._dynamo",
    "torch.onnx._internal.exporter._core",
    "anomalyclip.cli",
    "anomalyclip.evaluation.report",
    "anomalyclip.training.run",
)
"""What takes long to import, and starts no threads."""


def import_everything() -> None:
    for module in MODULES:
        import_module(module)
    import torch

    torch.set_num_threads(1)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a fork would lose {len(threads) - 1} threads"


def wait(child: int, seconds: float) -> int:
    """Return the exit code, minus the signal if it was killed; it is when the time is up."""
    handle = os.pidfd_open(child)
    timer = threading.Timer(seconds, lambda: suppressed_kill(handle))
    timer.start()
    try:
        _, status = os.waitpid(child, 0)
    finally:
        timer.cancel()
        timer.join()
        os.close(handle)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the processes that it started
    return os.waitstatus_to_exitcode(status)


def suppressed_kill(handle: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def run(words: Sequence[str], folder: str, limits: Limits, printed: int, count: int) -> None:
    """Run one command in this process, and end it."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(printed, stream)
        os.environ.update(limits.environment or {})
        if limits.file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_size, limits.file_size))
        if limits.user is not None:
            os.setgroups([])
            os.setgid(limits.user)
            os.setuid(limits.user)
        watch(count, limits.at_change)
        code = call(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def call(words: Sequence[str]) -> int:
    import traceback

    from anomalyclip.cli import main

    sys.argv = ["anomalyclip", *words]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def watch(count: int, at_change: int | None) -> None:
    """Count the changes of the file system, and kill this process just before one of them."""
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event in _CHANGES or writes:
            done += 1
            if done == at_change:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(count, b".")

    sys.addaudithook(hook)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
