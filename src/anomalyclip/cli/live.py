"""``predict --live``: a camera or stream until it ends, or until Ctrl-C."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import note
from anomalyclip.errors import AnomalyCLIPError

if TYPE_CHECKING:
    from anomalyclip.inputs import ImageFile
    from anomalyclip.readers import Live

Address = Annotated[
    str | None,
    typer.Option(
        "--live",
        help="Instead of PATHS: a camera or stream (rtsp://..., http://..., /dev/video0), until it ends or Ctrl-C. "
        "Frames that come too fast are dropped and counted.",
        metavar="ADDRESS",
        show_default=False,
    ),
]


def open_live(
    context: typer.Context, address: str, *, every: str | None, batch_size: int, others: list[str]
) -> "Live":
    """Return the source of an address; what makes no sense with it is refused."""
    from anomalyclip.readers import Live

    names = ("from_file", "axis", "resume", "shard", "processes", "ray")
    options.refuse(context, names, "cannot be combined with --live: it has no files, and does not come again")
    if others:
        raise AnomalyCLIPError(f"{others[0]}: --live takes the place of files; give one of them")
    return Live(address, every=every, keep=batch_size + 2)


def frames_of(live: "Live") -> "list[ImageFile]":
    """Return what is scored: the source, whose results are named by its address."""
    from anomalyclip.inputs import ImageFile

    return [ImageFile(live.name, re.sub(r"[^\w./-]+", "_", live.name.partition("://")[2] or live.name))]


@contextmanager
def until_stopped(live: "Live | None") -> Iterator[None]:
    """Keep a source open, if there is one.

    The first Ctrl-C ends it, and what came is finished; the second one stops at once.
    """
    if live is None:
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        live.stop()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        with live:
            yield
    finally:
        signal.signal(signal.SIGINT, before)
    for count, what in (
        (live.dropped, "dropped: they came faster than they can be scored (--every takes fewer)"),
        (live.damaged, "left out: they came damaged"),
    ):
        if count:
            note(f"{count} frames were {what}")
