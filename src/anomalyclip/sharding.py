"""Shards: a listing of images that is cut the same way by every process and on every machine."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path

from anomalyclip.addresses import Address, as_address
from anomalyclip.errors import AnomalyCLIPError, InputError
from anomalyclip.files import parse_json, replacing, writing
from anomalyclip.inputs import ImageFile, absolute
from anomalyclip.names import Names
from anomalyclip.readers.selection import holder, parted

LISTING = "shard.jsonl"
"""Name of the file in which a shard's run keeps its images."""


@dataclass(frozen=True)
class Shard:
    """One of several parts of a listing. An image belongs to the shard that a hash of its name says.

    The name is `anomalyclip.inputs.ImageFile.name`: the path relative to the folder that was given. It does not depend
    on the machine, on where the folder is mounted, or on the other images.

    Parameters
    ----------
    index, count : int
        Which one, counted from 1, of how many.

    Raises
    ------
    AnomalyCLIPError
        The index is not within 1 to `count`.

    Examples
    --------
    >>> [str(shard) for shard in map(Shard.parse, ("1/3", "2/3", "3/3")) if shard.has("line 1/a.png")]
    ['3/3']
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise AnomalyCLIPError(f"shard {self}: expected I/N with I from 1 to N, such as 3/16")

    @classmethod
    def parse(cls, text: str, *, environment: Mapping[str, str] = os.environ) -> "Shard":
        """Return the shard that a text names: ``3/16``, or ``auto`` for what SLURM or torchrun say of this process.

        ``auto`` combines the task of a SLURM array (SLURM_ARRAY_TASK_ID) with the rank of the process, which torchrun
        (RANK, WORLD_SIZE) or srun (SLURM_PROCID, SLURM_NTASKS) has set.

        Raises
        ------
        AnomalyCLIPError
            The text is neither, or nothing says which shard this process is.

        Examples
        --------
        >>> Shard.parse("auto", environment={"RANK": "2", "WORLD_SIZE": "16"})
        Shard(index=3, count=16)
        """
        if text == "auto":
            return _of_environment(environment)
        index, slash, count = text.partition("/")
        if not (slash and _is_number(index) and _is_number(count)):
            raise AnomalyCLIPError(f"shard {text!r}: expected I/N with I from 1 to N, such as 3/16, or auto")
        return cls(int(index), int(count))

    def has(self, name: str) -> bool:
        """Return whether the image of that name belongs to this shard."""
        digest = blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1

    @property
    def folder(self) -> str:
        """Name of the folder for the results of this shard."""
        return f"shard-{self.index:0{len(str(self.count))}}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


FOLDERS = "shard-*-of-*"
"""Pattern of `Shard.folder`."""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _of_environment(environment: Mapping[str, str]) -> Shard:
    ranks = [rank for rank in (_array_task(environment), _process(environment)) if rank is not None]
    if not ranks:
        raise AnomalyCLIPError(
            "shard auto: neither SLURM (SLURM_ARRAY_TASK_ID, SLURM_PROCID) nor torchrun (RANK, WORLD_SIZE) says which "
            "part this process does: give it as I/N, such as 3/16"
        )
    index, count = 0, 1
    for one, of in ranks:
        index, count = index * of + one, count * of
    return Shard(index + 1, count)


def _array_task(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the place of this task in a SLURM array, from 0, and how many tasks it has."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    task, count = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    first, last = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX"))
    if last - first + 1 != count:
        raise AnomalyCLIPError(
            f"shard auto: the SLURM array has {count} tasks from {first} to {last}, so the shards cannot be numbered: "
            "use an array without gaps, such as --array=1-16, and give single shards as I/N"
        )
    return task - first, count


def _process(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the rank of this process among those that were started together, and how many they are."""
    if "RANK" in environment:
        return _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if "SLURM_PROCID" in environment:
        of = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
        if of not in environment:  # sbatch without --ntasks, and no srun: the script runs once
            return None
        return _number(environment, "SLURM_PROCID"), _number(environment, of)
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not _is_number(text):
        raise AnomalyCLIPError(
            f"shard auto: {name} is {text or 'not set'}, expected a number: give the shard as I/N, such as 3/16"
        )
    return int(text)


def _wanted(path: str) -> str:
    """Return which images of a video or a volume are wanted."""
    try:
        return str(parted(path)[1])
    except InputError:  # which it will be in the run
        return ""


@dataclass(frozen=True)
class Entry:
    """An image of a shard: its place in the whole listing, its path and its name."""

    position: int
    path: str
    name: str

    @cached_property
    def home(self) -> str:
        """What the ids of its images begin with, if the file holds several."""
        return holder(self.path)


def _damaged(path: Path, error: Exception) -> AnomalyCLIPError:
    return AnomalyCLIPError(f"{path} is damaged ({error}); run this shard again with --resume")


@dataclass(frozen=True)
class Listing:
    """The images of a shard, in a file of its run's folder, each once.

    Attributes
    ----------
    folder : Path
        The run's.
    count : int
        Images of this shard.
    total : int
        Images of all shards, with those that were given more than once.
    repeated : int
        How often an image of this shard came again.
    digest : str
        SHA-256 over all names in their order, and what is selected of them. Shards that can be put together have the
        same.
    finished : bool
        Whether every image of the shard was scored or has an error.
    """

    folder: Path
    count: int
    total: int
    repeated: int
    digest: str
    finished: bool = False

    @classmethod
    def write(cls, folder: Path, shard: Shard, images: Iterable[ImageFile]) -> "Listing":
        """Read a listing to its end, and keep the images of a shard.

        Raises
        ------
        AnomalyCLIPError
            The file cannot be written.
        """
        total = repeated = 0
        seen = Names()
        names = sha256()
        with (
            writing(folder / LISTING),
            replacing(folder / LISTING) as temporary,
            temporary.open("w", encoding="ascii") as file,
        ):
            for position, image in enumerate(images):
                total += 1
                name = os.fsencode(image.name)
                names.update(name + _wanted(image.path).encode() + b"\0")
                if not shard.has(image.name):
                    continue
                if isinstance(image.path, Address) and image.path.hides:
                    raise AnomalyCLIPError(
                        f"{image.path}: addresses with a query or a password are not kept in files, so they cannot be "
                        "scored in shards"
                    )
                if not seen.add(absolute(image.path)):
                    repeated += 1
                    continue
                file.write(json.dumps([position, image.path, image.name]) + "\n")
            digest = names.hexdigest()
            facts = {"count": len(seen), "total": total, "repeated": repeated, "digest": digest}
            file.write(json.dumps(facts) + "\n")
        return cls(folder, len(seen), total, repeated, digest)

    @classmethod
    def read(cls, folder: Path) -> "Listing":
        """Return the listing in the folder of a run.

        Raises
        ------
        AnomalyCLIPError
            There is none, or it is damaged.
        """
        path = folder / LISTING
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 1000))
                *_, facts, last = [b"", *file.read().splitlines()]
            finished = parse_json(last) == {"finished": True}
            listing = cls(folder, **parse_json(facts if finished else last), finished=finished)
            counts = listing.count, listing.total, listing.repeated
            if not all(isinstance(count, int) and count >= 0 for count in counts):
                raise TypeError("its counts are no integers")
            if listing.count > path.stat().st_size:
                raise ValueError(f"it has no {listing.count} images")
            return listing
        except FileNotFoundError:
            raise AnomalyCLIPError(
                f"{folder}: there is no {LISTING}, so its images are unknown; run this shard again with --resume"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(path, error) from None

    def entries(self) -> Iterator[Entry]:
        """Yield the images in the order of the listing.

        Raises
        ------
        AnomalyCLIPError
            It is damaged.
        """
        with (self.folder / LISTING).open("rb") as file:
            for _ in range(self.count):
                try:
                    position, path, name = parse_json(file.readline())
                    if not (isinstance(position, int) and isinstance(path, str) and isinstance(name, str)):
                        raise TypeError("not a number and two texts")
                except (ValueError, TypeError) as error:
                    raise _damaged(self.folder / LISTING, error) from None
                yield Entry(position, path, name)

    def images(self) -> Iterator[ImageFile]:
        """Yield the images as `anomalyclip.predicting.predict` takes them."""
        return (ImageFile(as_address(entry.path) or entry.path, entry.name) for entry in self.entries())

    def finish(self) -> None:
        """Note that the shard is complete.

        Raises
        ------
        AnomalyCLIPError
            It cannot be written.
        """
        with writing(self.folder / LISTING), (self.folder / LISTING).open("a", encoding="ascii") as file:
            file.write(json.dumps({"finished": True}) + "\n")
