"""The way to a Ray cluster."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anomalyclip.errors import AnomalyCLIPError, reason
from anomalyclip.spec import DetectorSpec

OLDEST = (2, 50)
"""The first version of Ray that is known to have all that is used here."""

_PATIENCE = 10.0
"""Seconds that an address may take to answer."""


@dataclass(frozen=True)
class Actors:
    """How many actors score images, and what each of them takes."""

    count: int
    cpus: float
    gpus: float


def ray() -> Any:
    """Return the ``ray`` package, with its telemetry switched off.

    Raises
    ------
    AnomalyCLIPError
        It is not installed, or too old.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # or it prints on the screen what nobody can mend
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise AnomalyCLIPError("a Ray cluster needs ray: pip install 'anomalyclip[ray]'") from None
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
        raise AnomalyCLIPError(
            f"ray {found} is too old, {'.'.join(map(str, OLDEST))} or newer is needed: pip install 'anomalyclip[ray]', "
            "on every node of the cluster"
        )
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise AnomalyCLIPError(f"ray cannot be used ({error}): pip install 'anomalyclip[ray]'") from None
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield ``ray``, connected to a cluster until the block ends; a connection that is there is used and kept.

    Parameters
    ----------
    address : str
        ``local``: a cluster of this machine alone, which ends with the block; ``auto``: the one that this machine
        belongs to; or ``HOST:PORT``.

    Raises
    ------
    AnomalyCLIPError
        The address is one of Ray Client, Ray is missing or too old, or there is no cluster at the address.
    """
    check_no_client(address)
    package = ray()
    if package.is_initialized():
        yield package
        return
    _check_answers(address)
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        package.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # of many kinds
        raise AnomalyCLIPError(
            f"no Ray cluster at {address} ({reason(error).splitlines()[0]}): start one with `ray start --head`, or use "
            "local for this machine alone"
        ) from None
    try:
        yield package
    finally:
        package.shutdown()


def check_no_client(address: str) -> None:
    """Refuse an address of Ray Client, through which Ray Data cannot run.

    Raises
    ------
    AnomalyCLIPError
        It is one.
    """
    if address.startswith("ray://"):
        raise AnomalyCLIPError(
            f"{address}: Ray Data, which reads the images, does not work through a Ray client; give HOST:PORT of the "
            "cluster's head, or run this on a machine of the cluster with --ray auto, for example by `ray job submit`"
        )


def _check_answers(address: str) -> None:
    """Refuse an address where nothing answers; Ray would wait for it for minutes."""
    if address in ("local", "auto"):
        return
    found = re.fullmatch(r"([^/:]+|\[[^]]+\]):(\d{1,5})", address)
    if found is None:
        raise AnomalyCLIPError(f"{address}: expected local, auto or HOST:PORT of a Ray cluster")
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise AnomalyCLIPError(
            f"{address}: no Ray cluster answers there ({error}); `ray status` on its head says its address"
        ) from None


def actors_for(package: Any, spec: DetectorSpec, *, most: int | None, readers: bool) -> Actors:
    """Return how many actors a cluster has room for: one for each GPU, or one for each core.

    Actors hold their cores until the end. Where others must read, a core is left to them: if actors took all, readers
    would wait for ever.

    Parameters
    ----------
    package
        Ray, connected.
    spec : DetectorSpec
        Whether it may use GPUs.
    most : int, optional
        At most so many actors.
    readers : bool
        Whether other tasks of the same pipeline read.
    """
    resources = package.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if gpus and spec.model is None and spec.device in ("auto", "cuda"):
        count, each = gpus, Actors(0, 1.0 if cpus > gpus else 0.0, 1.0)
    else:
        count, each = max(1, cpus - readers), Actors(0, 1.0 if cpus > readers else 0.0, 0.0)
    return Actors(min(count, most or count), each.cpus, each.gpus)
