"""The processor and the peak memory of this process, which are reported with measurements. No PyTorch."""

import os
import platform
import sys
from typing import NamedTuple


def processor() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory() -> float:
    """Return the peak resident memory of this process in MB; nan if the system does not report it.

    On Linux ``ru_maxrss`` starts with the memory of the parent process; ``VmHWM`` starts at zero.
    """
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


class Instructions(NamedTuple):
    """What Linux says about the processor's instructions.

    Attributes
    ----------
    vendor : str
        ``GenuineIntel``, ``AuthenticAMD``, ...; empty if it is not known.
    family : int
        The vendor's number of the design; 0 if it is not known.
    flags : frozenset of str
        Names of instruction sets, such as ``avx512f``.
    """

    vendor: str
    family: int
    flags: frozenset[str]


def instructions() -> Instructions:
    """Return what is known about the processor's instructions; nothing outside of Linux on x86."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                found.setdefault(name.strip(), value.strip())
                if not line.strip():  # the first core
                    break
    except OSError:
        pass
    family = found.get("cpu family", "")
    return Instructions(
        found.get("vendor_id", ""),
        int(family) if family.isdigit() else 0,
        frozenset(found.get("flags", "").split()),
    )


def let_threads_rest() -> None:
    """Let the threads of GNU's OpenMP sleep soon after their work, if PyTorch is not loaded yet.

    By default they wait for the next work in a loop for milliseconds, on cores that other threads need: those that
    compute attention (`anomalyclip.clip.packed`), decode images and write results. Variables that are set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def keep_memory() -> None:
    """Let GNU's allocator keep the memory that a pass through a model frees, for the next pass.

    By default it gives most of it back to the system, which hands it out again filled with zeros, page by page: 3 % of
    the time of a pass (`docs/performance.md`). Memory that is set aside is bounded by a hundred megabytes or so.
    Variables that are set are kept.
    """
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    if not sys.platform.startswith("linux") or any(name in os.environ for name in (*names, "GLIBC_TUNABLES")):
        return
    import ctypes

    allocator = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if allocator is None:
        return
    for name, option, value in zip(names, (-3, -1), (32 << 20, 128 << 20), strict=True):  # as in malloc.h
        allocator(option, value)
        os.environ[name] = str(value)  # for the processes that this one starts
