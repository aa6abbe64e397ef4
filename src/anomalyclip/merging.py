"""Shards to the run that `predict` would have written in one go, in bounded memory."""

import heapq
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

from anomalyclip.addresses import Address, as_place, folder_on_disk
from anomalyclip.engines.kept import ENGINE
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPNote
from anomalyclip.files import linked, parse_json, replacing, writing
from anomalyclip.identity import differences
from anomalyclip.overview import check_page
from anomalyclip.overview.summary import error_line, prediction_line, summarize
from anomalyclip.overview.thumbnails import path_of
from anomalyclip.predicting import SHARD, PredictionRun, finish, run_folder
from anomalyclip.progress import Track, silent
from anomalyclip.runs import SETTINGS, read_settings
from anomalyclip.sharding import FOLDERS, Entry, Listing, Shard
from anomalyclip.writers import ERRORS, PREDICTIONS, PredictionWriter

_BLOCK = 1 << 16
"""Bytes of a file that are in memory at a time: there may be thousands of shards."""

_NAMED = 3


@dataclass
class Merged:
    """What was put together.

    Attributes
    ----------
    run : PredictionRun
        As if it had been one run.
    missing : list of str
        What is not in it, one sentence each; empty if it is complete.
    """

    run: PredictionRun
    missing: list[str]


def merge(
    runs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    save: Collection[str] = (),
    overwrite: bool = False,
    partial: bool = False,
    track: Track = silent,
) -> Merged:
    """Put the shards of a run together: the folder is what `predict` would have written without shards.

    Lines are in the order of the whole listing. Files are linked where the file system allows it, otherwise copied.

    Parameters
    ----------
    runs : sequence of path
        Folders of shards, or folders that hold them; also addresses, whose objects are copied first.
    output : path
        The folder for the whole run, or its address.
    save : collection of {"csv", "sheet"}
        What to save in addition; see `anomalyclip.predicting.predict`.
    overwrite : bool
        Replace the results in `output`.
    partial : bool
        Put together what there is, even if images are missing.
    track : Track
        Reports progress.

    Raises
    ------
    AnomalyCLIPError
        Images are missing (and `partial` is not set), a shard or an image is there twice, or the shards are not of one
        run: they have other settings, or other images were listed.

    Examples
    --------
    >>> import tempfile
    >>> from anomalyclip import DetectorSpec, predict
    >>> from anomalyclip.demo import PICTURES
    >>> parts, whole = tempfile.mkdtemp(), tempfile.mkdtemp()
    >>> for index in (1, 2):
    ...     _ = predict(DetectorSpec("micro"), PICTURES, parts, shard=Shard(index, 2))
    >>> merge([parts], whole).run.scored
    12
    """
    if unknown := sorted(set(save) - {"csv", "sheet"}):
        raise AnomalyCLIPError(f"cannot save {', '.join(unknown)}; choose from csv, sheet")
    for run in runs:
        place = as_place(run)
        if isinstance(place, Address) and f"{as_place(output)}/".startswith(f"{str(place).rstrip('/')}/"):
            raise AnomalyCLIPError(
                f"{output}: is one of the shards, or in their folder; choose another folder"
            )
    with ExitStack() as stack:
        here = [stack.enter_context(folder_on_disk(as_place(run))) for run in runs]
        return _merge(_parts(here), output, save, overwrite=overwrite, partial=partial, track=track)


def _merge(
    parts: Sequence["_Part"],
    output: str | os.PathLike[str],
    save: Collection[str],
    *,
    overwrite: bool,
    partial: bool,
    track: Track,
) -> Merged:
    if any(part.folder.resolve() == Path(output).resolve() for part in parts):
        raise AnomalyCLIPError(f"{output}: is one of the shards; choose another folder")
    folder = run_folder(output, overwrite=overwrite)
    with track("Checking", len(parts)) as advance:
        missing = _missing(parts, advance)
    if missing and not partial:
        raise AnomalyCLIPError(
            f"the run is not complete: {'; '.join(missing)}. Run what is missing (a stopped shard again with "
            "--resume), or give --partial to put together what there is"
        )
    settings = dict(parts[0].settings)
    del settings["command"]
    with folder.begin(settings, about=parts[0].about or None) as place:
        check_page(place, overwrite=overwrite)
        run = PredictionRun(folder.place or place)
        with (
            PredictionWriter(place, overwrite=overwrite) as writer,
            track("Merging", sum(part.listing.count for part in parts)) as advance,
        ):
            for line in _in_order(parts, PREDICTIONS):
                run.add(writer.adopt(line.record, line.folder, name=line.name))
                advance()
            for line in _in_order(parts, ERRORS):
                writer.write_error(str(line.record["image_path"]), str(line.record["error"]))
                run.failed += 1
        run.repeated = sum(part.listing.repeated for part in parts)
        _take_thumbnails(place, parts)
        finish(place, save)
    run.trim()
    return Merged(run, missing)


@dataclass(frozen=True)
class _Part:
    """A shard's folder, with what its files say of it."""

    folder: Path
    shard: Shard
    settings: dict[str, Any]
    about: dict[str, Any]
    listing: Listing


def _parts(runs: Sequence[Path]) -> list[_Part]:
    """Return the shards in the order of their numbers.

    Raises
    ------
    AnomalyCLIPError
        One is there twice, or they are not of one run.
    """
    parts = sorted((_part(folder) for run in runs for folder in _folders(run)), key=lambda p: p.shard.index)
    if not parts:
        raise AnomalyCLIPError("no shards were given: give their folders, or the folder that holds them")
    first = parts[0]
    for before, part in pairwise(parts):
        if part.shard == before.shard:
            raise AnomalyCLIPError(f"shard {part.shard} is there twice: {before.folder} and {part.folder}")
        if part.shard.count != first.shard.count:
            raise AnomalyCLIPError(
                f"{first.folder} is shard {first.shard} and {part.folder} is shard {part.shard}: they are of two runs"
            )
        if differ := differences(first.settings, part.settings):
            raise AnomalyCLIPError(
                f"{first.folder} and {part.folder} were run with different settings ({'; '.join(differ)})"
            )
        if (first.listing.total, first.listing.digest) != (part.listing.total, part.listing.digest):
            raise AnomalyCLIPError(
                f"the shards are not of the same images: {first.folder} listed {first.listing.total:,} images, "
                f"{part.folder} {part.listing.total:,}"
                f"{' with other names' * (first.listing.total == part.listing.total)}. Run both again with --resume on "
                "the same images"
            )
    if len(engines := sorted({part.about[ENGINE] for part in parts if part.about.get(ENGINE)})) > 1:
        warnings.warn(
            f"some shards were scored with {engines[0]} and others with {', '.join(engines[1:])}: their scores differ "
            "in the last digits; give all shards the same --engine if that matters",
            AnomalyCLIPNote,
            stacklevel=4,
        )
    return parts


def _folders(run: Path) -> Iterable[Path]:
    if (run / SETTINGS).is_file():
        return [run]
    inside = sorted(folder for folder in run.glob(FOLDERS) if folder.is_dir())
    if not inside:
        raise AnomalyCLIPError(
            f"{run}: neither a shard of `anomalyclip predict --shard` nor a folder of shards"
        )
    return inside


def _part(folder: Path) -> _Part:
    settings = read_settings(folder)
    about, shard = settings.pop("about", None), settings.pop(SHARD, None)
    if settings.get("command") != "predict" or not isinstance(shard, str):
        raise AnomalyCLIPError(f"{folder}: is not a shard of `anomalyclip predict --shard`")
    return _Part(folder, Shard.parse(shard), settings, about or {}, Listing.read(folder))


def _missing(parts: Sequence[_Part], advance: Callable[[], None]) -> list[str]:
    """Return what is missing for the whole run, in sentences."""
    count = parts[0].shard.count
    absent = sorted(set(range(1, count + 1)) - {part.shard.index for part in parts})
    found = []
    if absent:
        some = ", ".join(f"{index}/{count}" for index in absent[:10]) + ", ..." * (len(absent) > 10)
        found.append(f"{'shard' if len(absent) == 1 else f'{len(absent)} shards'} not given ({some})")
    for part in parts:
        done = bytearray(part.listing.count)
        for file in (PREDICTIONS, ERRORS):
            for _, ordinal, _ in _matched(part, file):
                done[ordinal] = True
        lacking = len(done) - sum(done)
        if lacking:
            names = [
                entry.name for entry, is_done in zip(part.listing.entries(), done, strict=True) if not is_done
            ]
            some = ", ".join(names[:_NAMED]) + ", ..." * (lacking > _NAMED)
            found.append(f"{part.folder} lacks {lacking:,} of {len(done):,} images ({some})")
        elif not part.listing.finished:
            found.append(f"{part.folder} was stopped before its end")
        advance()
    return found


@dataclass(frozen=True)
class _Line:
    """A line of a shard, with the image that it belongs to."""

    record: dict[str, Any]
    folder: Path
    name: str


_Matched = tuple[Entry, int, "_Read"]


@dataclass(frozen=True)
class _Read:
    """A line of a file, and where it begins."""

    record: dict[str, Any]
    start: int


def _matched(part: _Part, file: str, *, start: int = 0, stop: int | None = None) -> Iterator[_Matched]:
    """Yield the images of the lines in a shard's file, the image's place in its listing, and the lines.

    Most lines are in the order of the listing. Where one is not, as after a resumed run, the listing is read again.
    """
    entries = enumerate(part.listing.entries())
    current: tuple[int, Entry] | None = None
    for read in _lines(part.folder / file, start, stop):
        id = str(read.record["image_path"])
        if current is None or not _is_of(id, current[1]):
            current = _find(entries, id)
        if current is None:
            entries = enumerate(part.listing.entries())
            current = _find(entries, id)
        if current is None:
            raise AnomalyCLIPError(
                f"{part.folder / file}: {id} is not an image of this shard; run the shard again in a new folder"
            )
        yield current[1], current[0], read


def _find(entries: Iterator[tuple[int, Entry]], id: str) -> tuple[int, Entry] | None:
    return next((entry for entry in entries if _is_of(id, entry[1])), None)


def _is_of(id: str, entry: Entry) -> bool:
    """Return whether an id is that of an image, or of one in a file of several."""
    home = entry.home
    return id in (entry.path, home) or (
        id.startswith(home) and re.fullmatch("#[0-9]{1,9}", id[len(home) :]) is not None
    )


def _lines(path: Path, start: int, stop: int | None) -> Iterator[_Read]:
    """Yield the complete lines of a file; it is open only while a block of it is read."""
    checked = prediction_line if path.name == PREDICTIONS else error_line
    rest, at = b"", start
    while True:
        try:
            with path.open("rb") as file:
                file.seek(at + len(rest))
                block = file.read(_BLOCK)
        except FileNotFoundError:
            return
        if not block:
            return
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            if stop is not None and at >= stop:
                return
            try:
                record = checked(dict(parse_json(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise AnomalyCLIPError(
                    f"{path}: the line at byte {at} is damaged ({error}); delete it, and run the shard again with "
                    "--resume"
                ) from None
            yield _Read(record, at)
            at += len(line) + 1


_Keyed = tuple[tuple[int, int], _Line]


def _in_order(parts: Sequence[_Part], file: str) -> Iterator[_Line]:
    """Yield the lines of all shards in the order of the whole listing.

    Raises
    ------
    AnomalyCLIPError
        Two lines are of one image.
    """
    stretches = [_stretch(part, file, *ends) for part in parts for ends in _stretches(part, file)]
    merged = heapq.merge(*stretches, key=itemgetter(0))
    for _, group in groupby(merged, key=itemgetter(0)):
        (_, line), *others = group
        ids = {other.record["image_path"]: other.folder for _, other in others}
        if file == PREDICTIONS and others:
            id = line.record["image_path"]
            raise AnomalyCLIPError(
                f"{id} is there twice: in {line.folder} and {next(iter(ids.values()))}; delete one of the lines in "
                f"{PREDICTIONS}"
            )
        yield line
        yield from (other for _, other in others)


def _stretches(part: _Part, file: str) -> Iterator[tuple[int, int | None]]:
    """Yield from where to where the lines of a file are in the order of the listing."""
    begun, last = 0, (-1, -1)
    for entry, _, read in _matched(part, file):
        key = _key(entry, read)
        if key < last:
            yield begun, read.start
            begun = read.start
        last = key
    yield begun, None


def _stretch(part: _Part, file: str, start: int, stop: int | None) -> Iterator[_Keyed]:
    for entry, _, read in _matched(part, file, start=start, stop=stop):
        place, number = _key(entry, read)
        yield (
            (place, number),
            _Line(read.record, part.folder, f"{entry.name}#{number}" if number else entry.name),
        )


def _key(entry: Entry, read: _Read) -> tuple[int, int]:
    """Return an image's place in the whole listing, and its number in a file of several images or 0."""
    id = str(read.record["image_path"])
    return entry.position, 0 if id in (entry.path, entry.home) else int(id[len(entry.home) + 1 :])


def _take_thumbnails(place: Path, parts: Sequence[_Part]) -> None:
    """Take the thumbnails of the most anomalous images; each shard has those of its own."""
    for entry in summarize(place).top:
        target = path_of(place, entry.image_path)
        source = next(filter(Path.is_file, (path_of(part.folder, entry.image_path) for part in parts)), None)
        if source is not None:
            with writing(target), replacing(target) as temporary:
                linked(source, temporary)
