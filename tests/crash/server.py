"""Runs commands in processes that are forked from one which has imported everything: ``python -m tests.crash.server``.

A run starts within milliseconds. It can be killed at a chosen change of the file system or after a chosen time, and
have a limit of file size or no privileges.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
    unprivileged : bool
        Take away root's rights over other people's and read-only files, as an ordinary user has none.
    file_size : int, optional
        Bytes that a file may have; writing more fails.
    """

    at_change: int | None = None
    after: float | None = None
    unprivileged: bool = False
    file_size: int | None = None


def serve(scratch: Path) -> None:
    """Run jobs from standard input."""
    import_everything()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    scratch.mkdir(parents=True, exist_ok=True)
    for line in sys.stdin:
        job = json.loads(line)
        limits = Limits(**job["limits"])
        count = os.eventfd(0, os.EFD_NONBLOCK)
        reading, writing = os.pipe()
        begun = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.close(reading)
            run(job["words"], job["folder"], limits, writing, count)
        os.close(writing)
        with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb") as printed:
            text = pool.submit(printed.read)  # or a full pipe would stop the run
            code = wait(child, limits.after or PATIENCE)
            seconds = time.perf_counter() - begun
            text = text.result().decode(errors="replace")
        changes = 0
        with suppress(BlockingIOError):
            changes = os.eventfd_read(count)
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
        os.close(printed)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
        if limits.file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_size, limits.file_size))
        if limits.unprivileged:
            drop_capabilities()
        watch(count, limits.at_change)
        code = call(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def drop_capabilities() -> None:
    """Give up every capability (``capset(2)``): permissions of files then count for root as for anybody."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


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
            os.eventfd_write(count, 1)

    sys.addaudithook(hook)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
