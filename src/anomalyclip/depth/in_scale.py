"""Decoded images in one scale: what `decoding` yields, with at most 8 bits per channel, in the order of the sources.

Images are decoded ahead by several threads, and the scale of a run may be assumed from its first image. Images that are
decoded before that one wait for it, so that the results do not depend on which thread was faster.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from anomalyclip.decoding import OnError, decode, decode_ahead, name_of
from anomalyclip.depth import Range, Scale
from anomalyclip.errors import AnomalyCLIPWarning, InputError, concerning
from anomalyclip.readers import Frame, Source

T = TypeVar("T")


@dataclass(frozen=True)
class Shown:
    """An image as a model may see it.

    Attributes
    ----------
    source : Source
        What was given.
    id : str or None
        See `anomalyclip.readers.Frame`.
    image : PIL.Image.Image
        At most 8 bits per channel.
    value_range : (float, float) or None
        The range of the run, if it was needed.
    time : float or None
        See `anomalyclip.readers.Frame`.
    """

    source: Source
    id: str | None
    image: Image.Image
    value_range: Range | None
    time: float | None = None


@dataclass(frozen=True)
class _Item(Generic[T]):
    """What is made of an image, or an image that waits for its scale."""

    source: Source
    id: str | None
    made: T | None
    waiting: Frame | None
    assumed: bool


def decode_in_scale(
    sources: Iterable[Source],
    prepare: Callable[[Shown], T],
    scale: Scale,
    *,
    depth: int | None = None,
    workers: int | None = None,
    on_error: OnError | None = None,
    skip: Callable[[str], bool] | None = None,
) -> Iterator[T]:
    """Yield what `prepare` makes of every image.

    Parameters
    ----------
    sources : iterable of Source
        May be endless; it is read only as far as it is needed.
    prepare : callable
        From an image to what is wanted of it; whatever it raises concerns that image alone.
    scale : Scale
        Of the run that these sources are a part of. When a second image depends on what it assumed, a warning says so.
    depth, workers, on_error
        As for `anomalyclip.decoding.decode_ahead`; with a `depth` of None nothing is decoded ahead.
    skip : callable, optional
        Called with the id of each image that has one; if it returns true, the image is left out.

    Yields
    ------
    T
    """

    def shown(source: Source, frame: Frame) -> _Item[T]:
        assumed = scale.depends(frame.image)
        image, value_range = scale(frame.image, name=name_of(source, frame.id))
        made = prepare(Shown(source, frame.id, image, value_range, frame.time))
        return _Item(source, frame.id, made, None, assumed)

    def first(source: Source, frame: Frame) -> _Item[T]:
        if scale.is_open(frame.image):
            return _Item(source, frame.id, None, frame, True)
        return shown(source, frame)

    items = (
        decode(sources, first, on_error=on_error)
        if depth is None
        else decode_ahead(sources, first, depth=depth, workers=workers, on_error=on_error)
    )
    for item in items:
        if skip is not None and item.id is not None and skip(item.id):
            continue
        if item.waiting is not None:  # here images come in order
            try:
                with concerning(name_of(item.source, item.id), "cannot be made ready for the model"):
                    item = shown(item.source, item.waiting)
            except InputError as error:
                if on_error is None:
                    raise
                on_error(item.source if item.id is None else item.id, error)
                continue
        if item.assumed and scale.is_second():
            warnings.warn(scale.remark(), AnomalyCLIPWarning, stacklevel=4)
        assert item.made is not None
        made = [item.made]
        del item
        yield made.pop()  # not held here while the next one is decoded: an uncut image may be a gigabyte
