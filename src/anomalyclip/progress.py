"""How long work reports that it goes on: by whoever starts it, a bar on a screen or nothing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Track(Protocol):
    """Told what is going on and how many steps there will be (None: unknown); gives what counts one more."""

    def __call__(self, what: str, total: int | None, /) -> AbstractContextManager[Callable[[], None]]:
        """Begin."""
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
