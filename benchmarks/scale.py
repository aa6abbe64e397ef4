"""What large runs cost: names, shards, processes, a Ray cluster, and memory.

    python -m benchmarks.scale names --count 1000000
    python -m benchmarks.scale memory --counts 1000 100000
    python -m benchmarks.scale processes --images 400 --most 2
    python -m benchmarks.scale ray --images 10000
    python -m benchmarks.scale ray-memory --counts 1000 100000
    python -m benchmarks.scale ray-weights --most 4
    python -m benchmarks.scale kills --images 10000

`names` lists names that no file has, cuts them into shards and looks them up among those that are done. `memory` runs
`predict`, `merge` and `summarize` on links to one small image, with a scorer that does nothing. `processes` and `ray`
score small generated images with micro, and give images per second and their ratio to one process. `ray-memory` gives
the peak memory of the process that lists and writes, and of the actor that scores (on Linux). `ray-weights` gives what
the actors of one node read from the disk to load a ViT-B/32 with random weights, and how much of it they share, for a
file of float32 and one of float16 (on Linux); before, the system drops the file from memory. `kills` is the test
of tests/test_distributed.py with more images: a node and twice the driver are killed, and the rows are compared with
those of `predict`. Each line of the output is a measurement as JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64


def say(**measured: object) -> None:
    print(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in measured.items()}), flush=True
    )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(task: str, *arguments: object) -> None:
    """Run one measurement in a process of its own, so that its peak memory is its own."""
    subprocess.run([sys.executable, "-m", "benchmarks.scale", f"_{task}", *map(str, arguments)], check=True)


def make_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06}.jpg")
    return folder


def make_links(folder: Path, count: int) -> Path:
    """So many names of one image."""
    folder.mkdir()
    Image.new("RGB", (16, 16), "gray").save(folder / "000000.png")
    for number in range(1, count):
        if number % 10_000 == 0:  # a file system allows only so many links to a file
            Image.new("RGB", (16, 16), "gray").save(folder / f"{number:06}.png")
        else:
            os.link(folder / f"{number - number % 10_000:06}.png", folder / f"{number:06}.png")
    return folder


def names(count: int) -> None:
    from anomalyclip.inputs import ImageFile
    from anomalyclip.names import Names
    from anomalyclip.sharding import Listing, Shard

    def listed() -> Iterator[ImageFile]:
        for number in range(count):
            name = f"line {number % 50}/2026-11-28/{number:09}.png"
            yield ImageFile(f"/data/parts/{name}", name)

    before = peak_mb()
    start = time.perf_counter()
    for _ in listed():
        pass
    generated = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        listing = Listing.write(Path(folder), Shard(3, 16), listed())
        say(
            what="one shard of 16 listed and written",
            names=count,
            mine=listing.count,
            seconds=time.perf_counter() - start - generated,
            peak_mb=peak_mb() - before,
        )
    done = Names()
    start = time.perf_counter()
    for number, image in enumerate(listed()):
        if number % 2:  # half of them are done
            done.add(image.path)
    added = time.perf_counter() - start - generated
    start = time.perf_counter()
    found = sum(image.path in done for image in listed())
    say(
        what="half of the names added to those that are done, then all of them looked up",
        names=count,
        done=len(done),
        found=found,
        add_seconds=added,
        look_up_seconds=time.perf_counter() - start - generated,
        peak_mb=peak_mb() - before,
    )


def nothing_scorer() -> object:
    """Return a detector that does nothing, to measure everything else."""
    from anomalyclip import Detector
    from anomalyclip.scorer import Description

    class Nothing:
        image_size = 16

        def __call__(self, pixels):
            count = len(pixels)
            return np.full(count, 0.5, np.float32), np.zeros((count, 16, 16), np.float32)

        def identity(self):
            return {"scorer": "nothing"}

        def describe(self):
            return Description("nothing")

    return Detector(Nothing())


def memory(count: int) -> None:
    from anomalyclip.merging import merge
    from anomalyclip.predicting import predict
    from anomalyclip.sharding import Shard
    from anomalyclip.summarizing import summarize

    with tempfile.TemporaryDirectory() as folder:
        images = make_links(Path(folder, "images"), count)
        shards = Path(folder, "shards")

        def measured(what: str, work) -> None:
            child = os.fork()
            if child == 0:  # a process of its own, that has loaded nothing yet
                start = time.perf_counter()
                work()
                say(what=what, names=count, seconds=time.perf_counter() - start, peak_mb=peak_mb())
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit(f"{what} failed")

        measured("predict", lambda: predict(nothing_scorer(), images, Path(folder, "whole"), batch_size=16))
        for index in (1, 2):
            measured(
                f"predict --shard {index}/2",
                lambda index=index: predict(
                    nothing_scorer(), images, shards, shard=Shard(index, 2), batch_size=16
                ),
            )
        measured("merge", lambda: merge([shards], Path(folder, "merged")))
        measured("summarize", lambda: summarize([shards]))
        same = [Path(folder, name, "predictions.jsonl").read_bytes() for name in ("whole", "merged")]
        say(what="the merged lines are those of one run", same=same[0] == same[1])


def processes(images: int, most: int) -> None:
    from anomalyclip import DetectorSpec, predict
    from anomalyclip.workers import Workers

    spec = DetectorSpec("micro")
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_images(Path(folder, "images"), images)
        paths = sorted(map(str, pictures.iterdir()))
        rates = {}
        cores = os.sched_getaffinity(0)
        for count in range(most + 1):  # first one process on one core
            os.sched_setaffinity(0, cores if count else {min(cores)})
            with Workers(spec, max(count, 1)) as workers:
                list(workers.stream(paths[: 16 * max(count, 1)]))  # all have loaded
                while not all(worker.is_ready for worker in workers._workers):
                    list(workers.stream(paths[:8]))
                start = time.perf_counter()
                predict(workers, pictures, Path(folder, f"out {count}"))
                rates[count] = images / (time.perf_counter() - start)
        detector = spec.load()
        start = time.perf_counter()
        predict(detector, pictures, Path(folder, "alone"))
        say(what="one process, all cores", per_second=images / (time.perf_counter() - start))
        one = rates.pop(0)
        say(what="one process on one core", per_second=one)
        for count, rate in rates.items():
            say(
                what="processes",
                processes=count,
                threads_each=max(1, len(cores) // count),
                per_second=rate,
                ratio_to_ideal=rate / (one * len(cores)),
            )


def on_ray(images: int) -> None:
    from anomalyclip import DetectorSpec, predict
    from anomalyclip.distributed import Cluster
    from anomalyclip.distributed import predict as predict_on_ray
    from anomalyclip.distributed.tables import rows_of

    spec = DetectorSpec("micro", image_size=48)
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_images(Path(folder, "images"), images)
        detector = spec.load()
        start = time.perf_counter()
        predict(detector, pictures, Path(folder, "here"))
        here = time.perf_counter() - start
        say(what="one process", images=images, seconds=here, per_second=images / here, peak_mb=peak_mb())
        lines = (json.loads(line) for line in (Path(folder, "here") / "predictions.jsonl").open())
        ours = {line["image_path"]: line["pred_score"] for line in lines}
        cores = len(os.sched_getaffinity(0))
        start = time.perf_counter()
        predict_on_ray(next(pictures.iterdir()), spec, Path(folder, "one"), cluster=Cluster("local", 1))
        started = time.perf_counter() - start
        say(what="ray, one image: a local cluster is started", seconds=started)
        rates = {}
        for actors in sorted({1, cores}):
            start = time.perf_counter()
            out = Path(folder, f"ray {actors}")
            predict_on_ray(pictures, spec, out, cluster=Cluster("local", actors))
            seconds = time.perf_counter() - start
            rates[actors] = images / (seconds - started)
            say(
                what="ray",
                actors=actors,
                images=images,
                seconds=seconds,
                per_second_without_the_start=rates[actors],
                ratio_to_one_process=rates[actors] / (images / here),
                ratio_to_ideal=rates[actors] / (actors * rates[1]),
                driver_peak_mb=peak_mb(),
            )
            rows = {row["path"]: row["score"] for row in rows_of(out, ["path", "score"])}
            say(
                what="the rows beside those of predict",
                same_images=ours.keys() == rows.keys(),
                largest_difference=max(abs(ours[path] - rows[path]) for path in ours),
            )


def memory_on_ray(count: int) -> None:
    from anomalyclip import DetectorSpec
    from anomalyclip.distributed import Cluster, predict

    peaks = {"actor": 0.0}

    @contextmanager
    def watched(title: str, total: int | None) -> Iterator[Callable[[], None]]:
        yield lambda: peaks.update(actor=max(peaks["actor"], *map(peak_mb_of, actor_processes())))

    with tempfile.TemporaryDirectory() as folder:
        images = make_links(Path(folder, "images"), count)
        spec = DetectorSpec("micro", image_size=24)
        start = time.perf_counter()
        run = predict(images, spec, Path(folder, "out"), cluster=Cluster("local"), track=watched)
        say(
            what="ray, an actor per core",
            names=count,
            scored=run.scored,
            seconds=time.perf_counter() - start,
            driver_peak_mb=peak_mb(),
            actor_peak_mb=peaks["actor"],
        )


def actor_processes() -> Iterator[Path]:
    """Yield the processes of actors, as Linux lists them."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"MapWorker" in (process / "cmdline").read_bytes():
                yield process


def peak_mb_of(process: Path) -> float:
    with suppress(OSError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def weights_on_ray(actors: int, precision: str) -> None:
    import ray
    from safetensors.torch import save_file

    from anomalyclip import DetectorSpec
    from anomalyclip.benchmark import ARCHITECTURES, random_model
    from anomalyclip.distributed import Cluster, predict

    fullest: list[dict[str, float]] = []

    @contextmanager
    def watched(title: str, total: int | None) -> Iterator[Callable[[], None]]:
        drop(weights)  # as on a node that has not read it yet
        yield look

    def look() -> None:
        """Keep what is found while most actors have the model: they drop it when nothing is left to score."""
        nonlocal fullest
        with suppress(OSError):  # one has just ended
            now = [memory_of(process, weights) for process in actor_processes()]
            fullest = max(fullest, now, key=lambda found: sum(each["resident_mb"] for each in found))

    with tempfile.TemporaryDirectory() as folder:
        weights, prompts = Path(folder, "weights.safetensors"), Path(folder, "prompts.safetensors")
        clip, learned = random_model(ARCHITECTURES["ViT-B-32"])
        save_file((clip if precision == "float32" else clip.half()).state_dict(), weights)
        learned.save(prompts)
        spec = DetectorSpec(backbone=os.fspath(weights), prompts=os.fspath(prompts), image_size=224)
        images = make_images(Path(folder, "images"), 40 * actors)
        ray.init(num_cpus=actors, include_dashboard=False, log_to_driver=False)
        predict(images, spec, Path(folder, "out"), cluster=Cluster("auto"), track=watched)
        file_mb, read = weights.stat().st_size / 1e6, sum(each["from_disk_mb"] for each in fullest)
        say(what="ray, all actors", precision=precision, file_mb=file_mb, from_disk_mb=read)
        for each in fullest:
            say(what="ray, an actor", **each)


def drop(file: Path) -> None:
    """Have the system forget what it keeps of a file in memory."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_mb(process: str) -> float:
    """Return what a process has read from the disk, and not from the memory."""
    lines = Path("/proc", process, "io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes")) / 1e6


def memory_of(process: Path, file: Path) -> dict[str, float]:
    """Return what a process has in memory, all and of a file; its share: what n processes have in common counts 1/n."""
    sums = {"Rss": 0, "Pss": 0, "file Rss": 0, "file Pss": 0}
    is_file = False
    for line in (process / "smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss"):
            for kind in (name, f"file {name}") if is_file else (name,):
                sums[kind] += int(value.split()[0]) * 1024
        elif "-" in name.split(" ", 1)[0]:  # a new mapping
            is_file = line.endswith(os.fspath(file))
    return {
        "from_disk_mb": read_mb(process.name),
        "resident_mb": sums["Rss"] / 1e6,
        "share_mb": sums["Pss"] / 1e6,
        "resident_of_the_file_mb": sums["file Rss"] / 1e6,
        "share_of_the_file_mb": sums["file Pss"] / 1e6,
    }


def kills(images: int) -> None:
    from tests.test_distributed import (
        COLUMNS,
        DRIVER,
        SPEC,
        flat,
        kill_node,
        lines_of,
        predict_here,
        rows_of,
        two_nodes,
        wait_until,
    )
    from tests.test_distributed import make_images as make_test_images

    with tempfile.TemporaryDirectory() as folder, two_nodes() as nodes:
        pictures = make_test_images(Path(folder, "images"), images)
        (pictures / "deep.png").unlink()
        limit = 600 + images  # seconds for each part: a busy machine is slow, and one that hangs is found out
        start = time.perf_counter()
        predict_here(SPEC.load(threshold=0.5), pictures, Path(folder, "here"))
        say(what="predict", images=images, seconds=time.perf_counter() - start)
        out = Path(folder, "out")
        command = [sys.executable, "-c", DRIVER, nodes.address, str(pictures), str(out)]
        start = time.perf_counter()
        for part in range(3):
            aim = (part + 1) * images // 4
            process = subprocess.Popen(command)
            wait_until(lambda aim=aim: written(out) >= aim, process, seconds=limit)
            if part < 2:
                process.kill()
                process.wait()
            say(
                what="killed" if part < 2 else "node killed",
                rows=written(out),
                after=time.perf_counter() - start,
            )
        kill_node(next(iter(nodes.worker_nodes)))
        process.wait(limit)
        rows = flat(rows_of(out, COLUMNS))
        say(
            what="two drivers and a node killed",
            rows=len(rows),
            paths=len({row[0] for row in rows}),
            same_as_predict=rows == lines_of(Path(folder, "here")),
            seconds=time.perf_counter() - start,
        )


def written(out: Path) -> int:
    import pyarrow.parquet

    return sum(pyarrow.parquet.read_metadata(path).num_rows for path in out.glob("part-*.parquet"))


TASKS = ("names", "memory", "processes", "ray", "ray-memory", "ray-weights", "kills")
ALONE = {"_names": names, "_memory": memory, "_ray-memory": memory_on_ray}
"""Those that have a process of their own for each count."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*TASKS, *ALONE, "_float32", "_float16"])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--most", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.what == "names":
        alone("names", "--count", given.count)
    elif given.what in ("memory", "ray-memory"):
        for count in given.counts:
            alone(given.what, "--count", count)
    elif given.what == "ray-weights":
        for precision in ("float32", "float16"):
            alone(precision, "--most", given.most)
    elif given.what in ("_float32", "_float16"):
        weights_on_ray(given.most, given.what[1:])
    elif given.what in ALONE:
        ALONE[given.what](given.count)
    elif given.what == "processes":
        processes(given.images, given.most)
    elif given.what == "ray":
        on_ray(given.images)
    else:
        kills(given.images)


if __name__ == "__main__":
    main()
