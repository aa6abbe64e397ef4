"""From uploads to entries of an answer: what a request or a job puts into the queue, and what comes out."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from anomalyclip.depth.in_scale import Shown
from anomalyclip.detector import Detector
from anomalyclip.errors import InputError, TooLargeError, UnknownKindError, concerning
from anomalyclip.prediction import Prediction
from anomalyclip.serve.answers import encoded_map, entry, map_bytes, preview_of
from anomalyclip.serve.measures import Measures
from anomalyclip.serve.refusals import Refusal, without_frames
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.serve.uploads import Sent, Uploaded, images_of
from anomalyclip.serve.wanted import Wanted
from anomalyclip.serve.worker import Decoded, Ticket
from anomalyclip.tiling import Tiling

MOST_TILES = 2000
"""Tiles of an image at most: they are scored in one go, and others wait."""

_numbers = itertools.count()


@dataclass
class Entries:
    """Entries of an answer, as they come.

    Attributes
    ----------
    most_map_bytes : int
        How many bytes their maps may have.
    found : dict of int to dict
        By the position of the image among all of the request.
    failures : list of InputError
        Of images that could not be used.
    map_bytes : int
        Of the maps in them, about.
    """

    most_map_bytes: int
    found: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: list[InputError] = field(default_factory=list)
    map_bytes: int = 0

    def add(self, position: int, said: dict[str, Any]) -> None:
        """Take the entry of an image."""
        self.found[position] = said

    def fail(self, position: int, name: str, index: int, error: InputError) -> None:
        """Take the error of an image."""
        self.failures.append(without_frames(error))
        self.add(position, entry(name, index, error=str(error)))

    def in_order(self) -> list[dict[str, Any]]:
        """Return all entries in the order of the images."""
        return [said for _, said in sorted(self.found.items())]

    def status(self) -> int:
        """Return the status of the answer: an error only if no image could be used."""
        return self.failure() if self.failures and len(self.failures) == len(self.found) else 200

    def failure(self) -> int:
        """Return the status that says why the first image could not be used."""
        first = self.failures[0]
        return (
            413 if isinstance(first, TooLargeError) else 415 if isinstance(first, UnknownKindError) else 422
        )


@dataclass(frozen=True)
class Scoring:
    """Makes tickets of uploads.

    Parameters
    ----------
    settings : ServeSettings
        The limits of a request.
    measures : Measures
        Told of scores and failures.
    """

    settings: ServeSettings
    measures: Measures

    def ticket(
        self,
        detector: Detector,
        uploads: Iterable[Sent],
        wanted: Wanted,
        entries: Entries,
        *,
        most: int | None = None,
        is_job: bool = False,
        keep: Callable[[int, Prediction], None] | None = None,
        leave_out: Callable[[Image.Image], str | None] = lambda image: None,
    ) -> Ticket:
        """Return the ticket that fills `entries`.

        Parameters
        ----------
        detector : Detector
        uploads : iterable of Upload
            Taken one by one.
        wanted : Wanted
            What the entries tell.
        entries : Entries
        most : int, optional
            Images at most. None: those of a request.
        is_job : bool
            Whether it waits while requests do.
        keep : callable, optional
            Called with the position of each image among all, and its prediction.
        leave_out : callable
            Returns why an image is not scored; None: it is.
        """
        steps = _Steps(self, detector, wanted, entries, most or self.settings.max_images, keep, leave_out)
        return Ticket(detector, steps.of(uploads), is_job=is_job)


@dataclass
class _Steps:
    """Decodes the images of a ticket one by one."""

    scoring: Scoring
    detector: Detector
    wanted: Wanted
    entries: Entries
    most: int
    keep: Callable[[int, Prediction], None] | None
    leave_out: Callable[[Image.Image], str | None]
    position: int = 0

    def of(self, uploads: Iterable[Sent]) -> Iterator[Decoded | None]:
        scale, unpacked = self.detector.scale(), self.scoring.settings.unpacked_bytes
        for upload in uploads:
            index, name = 1, upload.name
            try:
                for found in images_of(upload, unpacked=unpacked, selection=self.wanted.selection):
                    index, name = found.index, found.name
                    if self.position >= self.most:
                        raise TooLargeError(
                            f"{name}: more than {self.most} images; send them in several requests"
                        )
                    with concerning(name, "cannot be made ready for the model"):
                        image, value_range = scale(found.image, name=name)
                        why_not = self.leave_out(image)
                        decoded = None if why_not else self._decoded(found, image, value_range)
                    if why_not:
                        self.entries.fail(self.position, name, index, InputError(f"{name}: {why_not}"))
                    self.position += 1
                    index += 1  # if the next one fails, it is that one
                    yield decoded
                    del found, image, decoded
            except InputError as error:
                self.scoring.measures.failed()
                self.entries.fail(self.position, name, index, error)
                self.position += 1
                yield None

    def _decoded(
        self, found: Uploaded, image: Image.Image, value_range: tuple[float, float] | None
    ) -> Decoded:
        check_tiles(self.detector.tiling, found.name, image.size)
        position, id = self.position, f"image {next(_numbers)}"
        preview = preview_of(image) if self.wanted.preview else None

        def finish(prediction: Prediction) -> None:
            if self.wanted.threshold is not None:
                prediction = prediction.with_threshold(self.wanted.threshold)
            self.scoring.measures.scored(prediction.pred_score)
            if self.keep is not None:
                self.keep(position, prediction)
            self.entries.map_bytes += map_bytes(prediction, self.wanted.map, self.wanted.map_size)
            if self.entries.map_bytes > self.entries.most_map_bytes:
                raise Refusal(
                    413,
                    f"the maps of the answer take more than {self.entries.most_map_bytes} bytes; ask for a smaller "
                    "map_size, or send fewer images",
                )
            map = encoded_map(prediction, self.wanted.map, self.wanted.map_size)
            self.entries.add(
                position,
                entry(
                    found.name, found.index, time=found.time, prediction=prediction, map=map, preview=preview
                ),
            )

        def fail(error: InputError) -> None:
            self.scoring.measures.failed()
            said = InputError(str(error).replace(id, found.name))
            self.entries.fail(position, found.name, found.index, said)

        return Decoded(self.detector.prepare(Shown(b"", id, image, value_range, found.time)), finish, fail)


def check_tiles(tiling: Tiling | None, name: str, size: tuple[int, int]) -> None:
    """Check that an image of (width, height) is not cut into too many tiles.

    Raises
    ------
    TooLargeError
        It would be cut into more than `MOST_TILES`.
    """
    if tiling is None or not tiling.cuts(size):
        return
    count = math.prod(len(tiling.starts(side)) for side in size)
    if count > MOST_TILES:
        raise TooLargeError(
            f"{name}: {size[0]} x {size[1]} pixels make {count} tiles of {tiling.size}; at most {MOST_TILES} are "
            "scored here: choose a model with larger tiles, or send a smaller image"
        )
