"""Generated images as a data set on disk, in MVTec AD's layout."""

import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread

import numpy as np

from anomalyclip.addresses import require_here
from anomalyclip.data.synthetic import CLASSES, DEFECTS, IMAGE_SIZE, LEAST_SIZE, generate
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import open_output, staging, writing

# Each part of a data set numbers its images in its own range, so that no scene occurs twice.
_TRAIN, _GOOD, _ANOMALOUS = 0, 1_000_000, 2_000_000
_PART = 8  # images per task of a process


@dataclass(frozen=True)
class _Job:
    folder: Path
    name: str
    split: str
    kind: str
    number: int
    seed: int
    index: int
    size: int


def write_dataset(
    output: str | os.PathLike[str],
    classes: Sequence[str],
    *,
    normal: int,
    anomalous: int,
    seed: int,
    defects: Sequence[str] | None = None,
    size: int = IMAGE_SIZE,
    workers: int = 1,
    on_image: Callable[[], None] = lambda: None,
) -> int:
    """Write a data set; all images of a class look like one product.

    ``<class>/train/good`` and ``<class>/test/good`` get `normal` flawless images each. The `anomalous` images are
    distributed evenly over ``<class>/test/<defect>``, with masks in ``<class>/ground_truth/<defect>/NNN_mask.png``. The
    same arguments give the same files for any number of workers. The folder appears only when it is complete.

    Parameters
    ----------
    output : path-like
        Folder that does not exist yet, or is empty.
    classes : sequence of str
        Keys of `CLASSES`.
    normal, anomalous : int
        Images per class, 0 or more.
    seed : int
        0 or more; another seed gives other products and other images.
    defects : sequence of str, optional
        Keys of `DEFECTS`, at least one; None for all.
    size : int
        Side of the images in pixels, at least `LEAST_SIZE`.
    workers : int
        Number of processes, 1 or more.
    on_image : callable
        Called after every image.

    Returns
    -------
    int
        Number of images written.

    Raises
    ------
    AnomalyCLIPError
        If a class or defect is unknown, a number is out of its range, both numbers of images are 0, the folder is not
        empty or cannot be written, or a process was killed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     count = write_dataset(Path(folder, "set"), ["cork"], normal=1, anomalous=1, seed=1, size=48)
    ...     count, sorted(path.name for path in Path(folder, "set", "cork").iterdir())
    (3, ['ground_truth', 'test', 'train'])
    """
    require_here(output, "generated images")
    output = Path(output)
    kinds = list(DEFECTS) if defects is None else list(dict.fromkeys(defects))
    names = list(dict.fromkeys(classes))
    _check_known("class", names, CLASSES)
    _check_known("defect", kinds, DEFECTS)
    least = {"normal": (normal, 0), "anomalous": (anomalous, 0), "seed": (seed, 0), "workers": (workers, 1)}
    least |= {"size": (size, LEAST_SIZE), "classes": (len(names), 1), "defects": (len(kinds), 1)}
    for what, (number, smallest) in least.items():
        if number < smallest:
            raise AnomalyCLIPError(f"{what} {number}: expected {smallest} or more")
    if not normal + anomalous:
        raise AnomalyCLIPError("0 normal and 0 anomalous images: expected at least 1 image")
    if output.resolve() == Path.cwd():
        raise AnomalyCLIPError(f"{output} is the current folder; choose a new folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise AnomalyCLIPError(f"{output} exists and is not empty; choose another folder or remove it")
    with writing(output), staging(output.parent) as unfinished:
        try:
            jobs = list(_jobs(unfinished, names, kinds, normal, anomalous, seed, size))
            with closing(_run(jobs, workers)) as drawn:
                for _ in drawn:
                    on_image()
            os.replace(unfinished, output)
        finally:
            with _deaf():
                shutil.rmtree(unfinished, ignore_errors=True)
    return len(jobs)


def _check_known(what: str, given: Sequence[str], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            raise AnomalyCLIPError(f"unknown {what} {name!r}; choose from: {', '.join(sorted(known))}")


def _jobs(
    folder: Path,
    names: Sequence[str],
    kinds: Sequence[str],
    normal: int,
    anomalous: int,
    seed: int,
    size: int,
) -> Iterator[_Job]:
    for name in names:
        for number in range(normal):
            yield _Job(folder, name, "train", "good", number, seed, _TRAIN + number, size)
        for number in range(normal):
            yield _Job(folder, name, "test", "good", number, seed, _GOOD + number, size)
        for number in range(anomalous):
            kind = kinds[number % len(kinds)]
            yield _Job(folder, name, "test", kind, number // len(kinds), seed, _ANOMALOUS + number, size)


def _run(jobs: Sequence[_Job], workers: int) -> Generator[None]:
    if workers == 1:
        yield from map(_draw, jobs)
        return
    # Ctrl-C reaches all processes at once. The workers ignore it, and this process stops them in order.
    leave_it = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=leave_it) as pool:
        try:
            parts = [pool.submit(_draw_all, jobs[at : at + _PART]) for at in range(0, len(jobs), _PART)]
            for part in parts:
                yield from [None] * part.result()
        except BrokenProcessPool:
            raise AnomalyCLIPError(
                "a worker process was killed, perhaps because memory ran out; nothing was written: use fewer --workers"
            ) from None
        except BaseException:  # stop now, without drawing the rest first
            with _deaf():
                pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore further Ctrl-C while processes are stopped and files are removed, so that both are completed."""
    if current_thread() is not main_thread():  # only the main thread gets signals and may set their handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _draw_all(jobs: Sequence[_Job]) -> int:
    for job in jobs:
        _draw(job)
    return len(jobs)


def _draw(job: _Job) -> None:
    from PIL import Image

    defect = None if job.kind == "good" else job.kind
    sample = generate(job.name, seed=job.seed, index=job.index, defect=defect, style=job.seed, size=job.size)
    image = job.folder / job.name / job.split / job.kind / f"{job.number:03d}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    with open_output(image) as file:
        Image.fromarray(sample.image).save(file, "PNG", compress_level=3)
    if defect is not None:
        mask = job.folder / job.name / "ground_truth" / job.kind / f"{job.number:03d}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        with open_output(mask) as file:
            Image.fromarray(sample.mask.astype(np.uint8) * np.uint8(255)).save(file, "PNG")
