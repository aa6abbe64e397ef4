"""`predict`: scores many images into a folder; a run that was stopped can be resumed."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any

from PIL import Image

from anomalyclip.addresses import Address, as_address
from anomalyclip.data.masks import GroundTruth
from anomalyclip.depth import Scale
from anomalyclip.detector import Detector
from anomalyclip.engines import kept
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPNote, AnomalyCLIPWarning, InputError
from anomalyclip.inputs import ImageFile, Listed, absolute, find_images
from anomalyclip.loading import load, require_references
from anomalyclip.names import Names
from anomalyclip.overview import (
    Films,
    Thumbnails,
    check_page,
    summarize,
    write_page,
    write_sheet,
    write_table,
    write_wholes,
)
from anomalyclip.prediction import Prediction
from anomalyclip.progress import Track, silent
from anomalyclip.readers import Selection, Source, holder, locate
from anomalyclip.remote_runs import RemoteFolder
from anomalyclip.runs import RunFolder
from anomalyclip.sharding import Listing, Shard
from anomalyclip.spec import DetectorSpec
from anomalyclip.visualize import captioned, overlay
from anomalyclip.workers import Workers
from anomalyclip.writers import PREDICTIONS, SAVEABLE, PredictionWriter, earlier_results

SAVED = (*SAVEABLE, "csv", "sheet", "nifti", "video")
"""What can be saved besides the lines and the page: files for each image, and files for the whole run."""

SHARD = "shard"
"""Name in the settings of a run that scored one shard."""

_KEPT = 20

_ONLY_QUERY = (
    "another address of this run differs from it only in its query, which is not kept in results; score it in a run of "
    "its own"
)

_KNOWN = {
    "micro": "the micro backbone is small, and has only seen defects that were drawn: on photographs it misses much. "
    "The default backbone is for those"
}
"""What the user of a small backbone should know."""


@dataclass
class PredictionRun:
    """What a run did.

    Attributes
    ----------
    folder : Path
        Where its results are (`anomalyclip.writers`).
    scored, skipped, failed, anomalous : int
        Images scored in this run, scored by an earlier run, that could not be used, and classified as anomalous.
    repeated : int
        How often a path came again; it is scored once.
    judged : bool
        Whether there was a threshold.
    top : list of dict
        The records of the most anomalous images scored in this run, highest score first; at most 20.
    """

    folder: Path | Address
    scored: int = 0
    skipped: int = 0
    failed: int = 0
    anomalous: int = 0
    repeated: int = 0
    judged: bool = False
    top: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        """Count one line of predictions.jsonl."""
        self.scored += 1
        self.judged |= record["pred_label"] is not None
        self.anomalous += bool(record["pred_label"])
        self.top.append(record)
        if len(self.top) > 10 * _KEPT:
            self.trim()

    def trim(self) -> None:
        """Keep the most anomalous images only."""
        self.top = sorted(self.top, key=lambda record: -record["pred_score"])[:_KEPT]


def predict(
    detector: Detector | Workers | DetectorSpec,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Iterable[ImageFile],
    output: str | os.PathLike[str] | RunFolder | None = None,
    *,
    save: Collection[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    shard: Shard | None = None,
    batch_size: int = 1,
    draw: Callable[[Image.Image, Prediction], Image.Image] = captioned,
    draw_small: Callable[[Image.Image, Prediction], Image.Image] = overlay,
    on_error: Callable[[str, InputError], None] | None = None,
    track: Track = silent,
) -> PredictionRun:
    """Score images into a folder: one JSON line per image, a page to look at, and maps, heat maps and masks as files.

    The page, ``index.html``, shows the 1,000 most anomalous images; a resumed run ends with the page of the whole run,
    and one that is stopped by Ctrl-C with the page of what was scored.

    Images that cannot be used are listed in ``errors.jsonl``, and the rest are scored.

    Parameters
    ----------
    detector : Detector, Workers or DetectorSpec
        With a threshold, the results include verdicts, masks and regions. `anomalyclip.workers.Workers`: a detector
        that works in several processes.
    images : path, sequence of paths, or iterable of ImageFile
        Files, folders (searched recursively) and patterns; or a listing from `anomalyclip.inputs`, which may be
        endless.
    output : path or RunFolder, optional
        The folder, or an address such as ``s3://bucket/run`` (`anomalyclip.remote_runs`). None: a new folder,
        ``runs/predict-1``, ``-2``, ...
    save : collection of {"map", "heatmap", "mask", "csv", "sheet", "nifti", "video"}
        What to save in addition: files for each image ("mask" needs a pixel threshold), all lines as a table
        (predictions.csv), a contact sheet of the most anomalous images (sheet.jpg), the maps of each NIfTI volume as
        one (which saves the maps too), and each video with the overlay (which cannot be resumed).
    resume, overwrite : bool
        Resume the run in `output` and skip the images already scored, or start again there.
    shard : Shard, optional
        Score only this part of the images, into a folder of its own in `output`; `anomalyclip.merging.merge` puts the
        parts together. Images of more than 8 bits that do not say their range need that of the detector.
    batch_size : int
        Images per batch.
    draw : callable
        (image, prediction) to heat map; see `PredictionWriter`.
    draw_small : callable
        (image, prediction) to overlay, for the page: a picture of the image's size, without caption.
    on_error : callable, optional
        Called with each image that cannot be used, and the error.
    track : Track
        Reports progress.

    Returns
    -------
    PredictionRun

    Raises
    ------
    AnomalyCLIPError
        There is no image to score, or the folder cannot be written to, already holds results (without `resume` or
        `overwrite`), or was started with other settings.

    Examples
    --------
    >>> import tempfile
    >>> from anomalyclip.demo import PICTURES
    >>> run = predict(DetectorSpec("micro"), PICTURES, tempfile.mkdtemp(), save=["heatmap"], batch_size=4)
    >>> run.scored, run.failed, len(list((run.folder / "heatmaps").iterdir()))
    (12, 0, 12)
    """
    folder = (
        output
        if isinstance(output, RunFolder)
        else run_folder(output, resume=resume, overwrite=overwrite, shard=shard)
    )
    listed = _listed(images, at_once=shard is None)
    if shard is not None:
        listed = _begun(listed)
    results = Results(tuple(save), batch_size, draw, draw_small)
    listing: Listing | None = None

    def write_listing(place: Path) -> None:
        nonlocal listing
        listing = None if shard is None else Listing.write(place, shard, listed)

    ready = load(kept.of_run(detector, folder)) if isinstance(detector, DetectorSpec) else detector
    with scoring(
        ready, folder, results, shard=shard, prepare=write_listing, on_error=on_error, on_scored=folder.note
    ) as work:
        wanted = listed if listing is None else listing.images()
        total = listing.count if listing else len(listed) if isinstance(listed, Sized) else None
        with track("Scoring", total) as advance:
            try:
                work.score(wanted, advance)
            except KeyboardInterrupt:
                work.finish()
                raise
        if not work.run.scored + work.run.skipped + work.run.failed and listing is None:
            raise AnomalyCLIPError("there was no image to score")
        work.finish()
        if listing is not None:
            work.run.repeated = listing.repeated
            listing.finish()
    work.run.folder = folder.place or work.folder
    return work.run


@dataclass(frozen=True)
class Results:
    """What a run makes of its images; the fields are the arguments of `predict`."""

    save: Collection[str] = ()
    batch_size: int = 1
    draw: Callable[[Image.Image, Prediction], Image.Image] = captioned
    draw_small: Callable[[Image.Image, Prediction], Image.Image] = overlay


@contextmanager
def scoring(
    detector: Detector | Workers,
    folder: RunFolder,
    results: Results,
    *,
    shard: Shard | None = None,
    prepare: Callable[[Path], None] | None = None,
    on_error: Callable[[str, InputError], None] | None = None,
    on_scored: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator["Scoring"]:
    """Yield a run in progress, in its folder, which is locked until the block ends.

    Parameters
    ----------
    detector : Detector or Workers
    folder : RunFolder
    results : Results
    shard : Shard, optional
        The part of the images that is scored.
    prepare : callable, optional
        Called with the folder once it is locked, before any result is written.
    on_error : callable, optional
        Called with each image that cannot be used, and the error.
    on_scored : callable, optional
        Called with the record of each image, once its line is written.

    Yields
    ------
    Scoring

    Raises
    ------
    AnomalyCLIPError
        As `predict`.
    """
    if isinstance(detector, Detector):  # workers have asked for themselves
        require_references(detector)
    threshold = detector.threshold
    if "mask" in results.save and (threshold is None or threshold.pixel is None):
        raise AnomalyCLIPError("--save mask needs a pixel threshold: set one, for example --threshold 0.5")
    limits = None if threshold is None else {"score": threshold.score, "pixel": threshold.pixel}
    if unknown := sorted(set(results.save) - set(SAVED)):
        raise AnomalyCLIPError(f"cannot save {', '.join(unknown)}; choose from {', '.join(SAVED)}")
    if "video" in results.save and (folder.resume or shard is not None):
        raise AnomalyCLIPError(
            "--save video cannot be combined with --resume or --shard: it needs all frames in order"
        )
    _tell_origin(detector)
    _tell_what_it_knows(detector)
    settings = {**detector.identity(), "threshold": limits, **({} if shard is None else {SHARD: str(shard)})}
    if "nifti" in results.save:
        folder.keep_maps()
    with folder.begin(settings, about=about(detector)) as place:
        check_page(place, overwrite=bool(folder.overwrite))
        if prepare is not None:
            prepare(place)
        with PredictionWriter(
            place,
            save=_for_each_image(results.save),
            resume=folder.resume,
            overwrite=bool(folder.overwrite),
            draw=results.draw,
        ) as writer:
            scale = detector.scale(assumed=writer.value_range, strict=shard is not None)
            work = Scoring(detector, writer, results, scale, on_error, on_scored)
            try:
                yield work
            finally:
                work.close()


def about(detector: Detector | Workers) -> dict[str, Any]:
    """Return what a run tells of its model beside the settings that decide the scores."""
    origin = "" if detector.threshold is None else detector.threshold.origin
    return {**kept.told(detector), "model": detector.describe().title, "threshold": origin or None}


def _tell_origin(detector: Detector | Workers) -> None:
    """Say where a threshold comes from, unless it is a number that was just given."""
    threshold, its_own = detector.threshold, detector.has_own_threshold
    if threshold is None or not (its_own or threshold.info):
        return
    limits = (("score", threshold.score), ("pixel", threshold.pixel))
    values = ", ".join(f"{name} {value:.4f}" for name, value in limits if value is not None)
    whose = "threshold of the exported file" if its_own else "threshold"
    made = (
        f"{threshold.origin}; it is valid for such images only"
        if threshold.origin
        else "made of unknown images"
    )
    warnings.warn(f"{whose}: {values} ({made})", AnomalyCLIPNote, stacklevel=5)


def _tell_what_it_knows(detector: Detector | Workers) -> None:
    if known := _KNOWN.get(str(detector.describe().facts.get("backbone"))):
        warnings.warn(known, AnomalyCLIPNote, stacklevel=5)


def _for_each_image(save: Collection[str]) -> list[str]:
    """Return the files that are written for each image; volumes are put together from maps."""
    return [kind for kind in SAVEABLE if kind in save or (kind == "map" and "nifti" in save)]


def finish(folder: Path, save: Collection[str], films: Mapping[str, str] | None = None) -> None:
    """Write what is made of the whole run, earlier parts included, and warn of what speaks against the model."""
    for remark in refresh(folder, save, films):
        warnings.warn(remark, AnomalyCLIPWarning, stacklevel=3)


def refresh(folder: Path, save: Collection[str], films: Mapping[str, str] | None = None) -> list[str]:
    """Write what is made of the whole run so far, and return the page's remarks."""
    summary = summarize(folder)
    write_page(folder, summary)
    write_wholes(folder, maps="nifti" in save, films=films)
    if "csv" in save:
        write_table(folder)
    if "sheet" in save:
        write_sheet(folder, summary)
    return summary.remarks()


def run_folder(
    output: str | os.PathLike[str] | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    shard: Shard | None = None,
) -> RunFolder:
    """Return the folder for a run's results; None is a new folder, ``runs/predict-1``, ``-2``, ...

    The results of a shard are in a folder of their own in `output`, such as ``shard-03-of-16``.

    Raises
    ------
    AnomalyCLIPError
        The folder cannot be used; see `RunFolder`. Or there is a shard and no `output`.
    """
    if shard is not None:
        if output is None:
            raise AnomalyCLIPError(
                "a shard needs a folder that all shards share: give --output FOLDER; each gets its own folder in it"
            )
        address = as_address(output)
        output = Path(output) / shard.folder if address is None else address.below(shard.folder)
    if output is not None and (address := as_address(output)) is not None:
        return RemoteFolder("predict", address, resume=resume, overwrite=overwrite)
    folder = RunFolder(
        "predict", output, resume=resume, overwrite=overwrite, results=PREDICTIONS, earlier=earlier_results
    )
    if folder.output is not None:
        check_page(folder.output)
    return folder


def images_in(
    paths: Sequence[str], *, skipped: Counter[str] | None = None, selection: Selection | None = None
) -> list[ImageFile]:
    """Return the images to score, as `stream_images` yields them."""
    return list(stream_images(paths, skipped=skipped, selection=selection))


def stream_images(
    paths: Sequence[str], *, skipped: Counter[str] | None = None, selection: Selection | None = None
) -> Iterator[ImageFile]:
    """Yield the images to score in files, folders and patterns: all but the ground-truth masks of data sets.

    Parameters
    ----------
    paths, skipped, selection
        As for `anomalyclip.inputs.find_images`.

    Yields
    ------
    ImageFile

    Raises
    ------
    AnomalyCLIPError
        As `anomalyclip.inputs.find_images`.
    """
    masks = GroundTruth()
    yield from find_images(paths, skipped=skipped, leave_out=masks, selection=selection)
    if masks.count:
        warnings.warn(
            f"{masks.count} ground-truth masks of a data set are not scored (such as {masks.example}); give their own "
            "folder to score them",
            AnomalyCLIPNote,
            stacklevel=2,
        )


def _listed(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Iterable[ImageFile], *, at_once: bool
) -> Iterable[ImageFile]:
    if isinstance(images, str | os.PathLike):
        images = [images]
    if isinstance(images, Sequence) and all(isinstance(image, str | os.PathLike) for image in images):
        found = stream_images([as_address(image) or os.fspath(image) for image in images])
        return Listed(found) if at_once and not any(map(as_address, images)) else _begun(found)
    return images  # type: ignore[return-value]


def _begun(images: Iterable[ImageFile]) -> Iterable[ImageFile]:
    """Take the first image of a listing, so that a path that does not exist is an error before anything is written."""
    rest = iter(images)
    first = list(islice(rest, 1))
    return chain(first, rest)


def _hidden(id: str) -> int | None:
    """Return a digest of an address that has more than its text shows."""
    return hash(id.url) if isinstance(id, Address) and id.hides else None


class Scoring:
    """A run in progress; `scoring` makes one.

    Attributes
    ----------
    run : PredictionRun
        What it did so far.
    folder : Path
        Where it writes; if the results are at an address, a folder that is sent there.
    """

    def __init__(
        self,
        detector: Detector | Workers,
        writer: PredictionWriter,
        results: Results,
        scale: Scale,
        on_error: Callable[[str, InputError], None] | None,
        on_scored: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.folder = writer.output_dir
        self.run = PredictionRun(self.folder)
        self._detector, self._writer, self._results = detector, writer, results
        detector.observations()  # what was scored before this run is no matter of it
        self._thumbnails = Thumbnails(
            writer.output_dir, draw=results.draw_small, pictures=detector.reference_pictures()
        )
        self._films = Films(writer.output_dir, results.draw_small) if "video" in results.save else None
        self._scale = scale
        self._on_error, self._on_scored = on_error, on_scored
        self._names: dict[str, str] = {}
        self._advance: Callable[[], None] = _nothing

    def score(self, images: Iterable[ImageFile], advance: Callable[[], None] | None = None) -> None:
        """Score images, those with a line excepted; `advance` is called for each."""
        self._advance = advance or _nothing

        def is_skipped(id: str) -> bool:
            done = id in self._writer.done or absolute(id) in self._writer.done
            self.run.skipped += done
            return done

        predictions = self._detector.stream(
            self._wanted(images),
            batch_size=self._results.batch_size,
            on_error=self._failed,
            skip=is_skipped,
            scale=self._scale,
        )
        for prediction in predictions:
            assert prediction.image_path is not None
            try:
                record = self._write(prediction, self._name(prediction.image_path))
            except InputError as error:  # the image file disappeared while it was scored
                self._failed(prediction.image_path, error)
            else:
                self.run.add(record)
                self._advance()
                if self._on_scored is not None:
                    self._on_scored(record)

    def finish(self) -> None:
        """Write what is made of the whole run, earlier parts included, and warn of what speaks against the model."""
        self.close()
        finish(self.folder, self._results.save, self._made_films())
        self.run.trim()
        for remark in self._detector.observations():
            warnings.warn(remark, AnomalyCLIPWarning, stacklevel=3)

    def refresh(self) -> None:
        """Write what is made of the whole run so far."""
        refresh(self.folder, self._results.save, self._made_films())

    def close(self) -> None:
        """Complete the video that is being written, if there is one."""
        if self._films is not None:
            self._films.close()

    def withdraw_error(self, path: str) -> None:
        """Forget that an image could not be used: it is there in full by now."""
        self._writer.withdraw_error(path)
        self.run.failed -= 1

    def _made_films(self) -> Mapping[str, str] | None:
        return None if self._films is None else self._films.files

    def _write(self, prediction: Prediction, name: str | None) -> dict[str, Any]:
        image = self._thumbnails.draw(prediction) if self._thumbnails.wants(prediction) else None
        record = self._writer.write(prediction, name=name, image=image)
        self._thumbnails.settle(prediction)
        if self._films is not None and prediction.time is not None:
            path, _ = locate(prediction.image_path or "")
            self._films.add(prediction, image, path=path, name=self._names.get(path, path))
        return record

    def _wanted(self, images: Iterable[ImageFile]) -> Iterator[str]:
        seen = Names()
        queries: dict[str, int] = {}
        for image in images:
            path = absolute(image.path)
            if not seen.add(path):
                if queries.get(path) == _hidden(image.path):
                    self.run.repeated += 1
                    self._advance()
                else:
                    self._failed(image.path, InputError(f"{image.path}: {_ONLY_QUERY}"))
                continue
            if (hidden := _hidden(image.path)) is not None:
                queries[path] = hidden
            if path in self._writer.done:
                self.run.skipped += 1
                self._advance()
                continue
            self._names.pop(home := holder(image.path), None)  # the last to come is the last of them
            self._names[home] = image.name
            yield image.path

    def _name(self, id: str) -> str | None:
        """Return the name for an image's results; if a file holds several images, each name has its number."""
        path, number = (id, None) if id in self._names else locate(id)
        name = self._names.get(path)
        if name is None:
            return None
        for earlier in takewhile(lambda other: other != path, list(self._names)):
            del self._names[earlier]  # results come in the order of the images
        return name if number is None else f"{name}#{number}"

    def _failed(self, image: Source, error: InputError) -> None:
        """Record an image that could not be used; the run continues with the others."""
        path = str(image)
        self._writer.write_error(path, error)
        self.run.failed += 1
        if self._on_error is not None:
            self._on_error(path, error)
        self._advance()


def _nothing() -> None:
    """Take no note of progress."""
