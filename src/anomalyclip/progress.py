"""Progress callbacks: the caller decides whether progress is shown as a bar or not at all."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Track(Protocol):
    """Called with a description and the number of steps (None: unknown); yields a function that counts one step."""

    def __call__(self, what: str, total: int | None, /) -> AbstractContextManager[Callable[[], None]]:
        """Start reporting."""
        ...


@contextmanager
def silent(what: str, total: int | None, /) -> Iterator[Callable[[], None]]:
    """Report nothing.

    Examples
    --------
    >>> with silent("Scoring", 3) as advance:
    ...     advance()
    """
    yield lambda: None
