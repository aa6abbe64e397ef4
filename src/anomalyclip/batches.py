"""Prepared images in batches through a model, and whose fault it is when a batch cannot be scored."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from anomalyclip.decoding import OnError, name_of
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPWarning, InputError, reason
from anomalyclip.readers import Source


class Prepared(Protocol):
    """An image as a model takes it: where it is from, and which one of a file with several."""

    @property
    def source(self) -> Source:
        """What was given."""
        ...

    @property
    def id(self) -> str | None:
        """Its path, and its number in a file that holds several; None for what is in memory."""
        ...


Item = TypeVar("Item", bound=Prepared)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batches(Generic[Item, Result]):
    """Scores prepared images in batches.

    Parameters
    ----------
    score : callable
        From a batch to a result for each of its images.
    check : callable
        Scores an image that nothing is wrong with; raises where the model itself does not work.
    size : int
        Images per batch.
    on_error : callable, optional
        Called with an image that cannot be scored and the error, and the rest goes on. None: the error is raised.

    Raises
    ------
    AnomalyCLIPError
        A size below 1.
    """

    score: Callable[[list[Item]], list[Result]]
    check: Callable[[], object]
    size: int
    on_error: OnError | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise AnomalyCLIPError(f"batch size {self.size}: expected 1 or more")

    def of(self, prepared: Iterator[Item]) -> Iterator[Result]:
        """Yield the results of images in their order."""
        for batch in _gathered(prepared, self.size):
            try:
                results = self.score(batch)
            except Exception as error:
                yield from self._apart(batch, error)
                continue
            batch.clear()  # an uncut image may be a gigabyte, and whoever takes the result may open it again
            while results:  # and none is held while the next one is scored: its map may be as large
                yield results.pop(0)

    def _apart(self, batch: Sequence[Item], error: Exception) -> Iterator[Result]:
        """Score the images of a batch that failed one by one, so that each error concerns one image.

        Where the model does not work at all, it is not the images' fault, and the error is raised.
        """
        try:
            self.check()
        except Exception:
            raise error from None
        failed = 0
        for item in batch:
            try:
                if len(batch) == 1:
                    raise error
                results = self.score([item])
            except Exception as own:
                failed += 1
                said = InputError(f"{name_of(item.source, item.id)}: cannot be scored: {reason(own)}")
                if self.on_error is None:
                    raise said from own
                self.on_error(item.source if item.id is None else item.id, said)
            else:
                yield from results
        if not failed:
            warnings.warn(
                f"a batch of {len(batch)} images could not be scored at once ({reason(error)}), and its images were "
                "scored one by one: a smaller batch size will be faster",
                AnomalyCLIPWarning,
                stacklevel=3,
            )


def _gathered(prepared: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Gather batches; where the source fails, what came before it is still scored."""
    batch: list[Item] = []
    try:
        for item in prepared:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:  # of the source: the consumer's own never come here
        if batch:
            yield batch
        raise
    if batch:
        yield batch
