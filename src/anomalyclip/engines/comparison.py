"""Compare the runtimes: time, start-up, size and memory of the same detector, each in a separate process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.files import parse_json
from anomalyclip.machine import peak_memory, processor
from anomalyclip.spec import DetectorSpec

RUNTIMES = (
    "torch",
    "torch-compiled",
    "torch-bf16",
    "onnx-fp32",
    "onnx-fp16",
    "onnx-int8",
    "openvino-fp32",
    "openvino-fp16",
    "openvino-int8",
)


@dataclass(frozen=True)
class RuntimeTiming:
    """One row of the comparison.

    Attributes
    ----------
    runtime : str
        One of `RUNTIMES`.
    batch_size : int
        Images per batch.
    seconds : float
        Seconds per image from squashed pixels to score and map, best of the repetitions.
    ratio : float
        `seconds / floor`. It may be below 1 for bf16 and int8.
    start_up : float
        Seconds from the start of the process to the first score of one batch.
    megabytes : float
        Size of the model's files.
    peak_memory : float
        Peak memory of the process in MB.
    difference : float
        Largest difference of score and map from PyTorch in float32 on a few images; nan for PyTorch in float32 itself,
        compiled or not.
    floor : float
        Seconds that the encoder's float32 matrix products need for one image at the rate of the best library, which is
        measured before and after each row.
    failure : str
        Why there are no figures; empty otherwise.
    """

    runtime: str
    batch_size: int
    seconds: float = float("nan")
    ratio: float = float("nan")
    start_up: float = float("nan")
    megabytes: float = float("nan")
    peak_memory: float = float("nan")
    difference: float = float("nan")
    floor: float = float("nan")
    failure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-ready."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def compare(
    architecture: str = "ViT-L-14-336",
    *,
    image_size: int | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    runtimes: Sequence[str] = RUNTIMES,
    repeats: int = 3,
    folder: str | os.PathLike[str] | None = None,
) -> Iterator[RuntimeTiming]:
    """Export a detector with random weights in every format and time each on the CPU.

    Parameters
    ----------
    architecture : str
        A key of `anomalyclip.benchmark.ARCHITECTURES`.
    image_size : int, optional
        Side of the images. None: the architecture's own.
    batch_sizes : sequence of int
        Images per batch.
    runtimes : sequence of str
        Some of `RUNTIMES`.
    repeats : int
        Runs of each; the best one counts.
    folder : path-like, optional
        Keeps the exported files for the next comparison. None: they are deleted.

    Yields
    ------
    RuntimeTiming
        One at a time, as it is measured; at full size each takes a minute or more.

    Raises
    ------
    AnomalyCLIPError
        An unknown architecture or runtime.
    """
    from anomalyclip.engines.floor import limit
    from anomalyclip.engines.torch import choose_device

    if unknown := set(runtimes) - set(RUNTIMES):
        raise AnomalyCLIPError(
            f"runtime {', '.join(sorted(unknown))}: expected some of {', '.join(RUNTIMES)}"
        )
    about, cpu = conditions(architecture, image_size), choose_device("cpu")
    size, gflop = about["image_size"], about["gflop"]
    with place_of(folder) as place:
        exports = Exports(place, about)
        for runtime in runtimes:
            try:
                files, difference = exports.of(runtime)
            except Exception as error:  # if one export fails, the other rows are still measured
                failure = (
                    f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else repr(error)
                )
                yield from (RuntimeTiming(runtime, batch, failure=failure) for batch in batch_sizes)
                continue
            megabytes = sum(file.stat().st_size for file in files) / 1e6
            for batch in batch_sizes:
                before = limit(cpu).rate
                measured = in_a_process(runtime, files[0], size, batch, repeats)
                floor = gflop / max(before, limit(cpu).rate)
                if "failure" not in measured:
                    measured |= {"ratio": measured["seconds"] / floor, "floor": floor}
                yield RuntimeTiming(runtime, batch, megabytes=megabytes, difference=difference, **measured)


def conditions(architecture: str, image_size: int | None = None) -> dict[str, Any]:
    """Return the conditions of the measurement: image_size, gflop (per image), processor, cores, versions.

    Raises
    ------
    AnomalyCLIPError
        An unknown architecture.
    """
    from anomalyclip.benchmark import ARCHITECTURES, encoder_gflop
    from anomalyclip.clip_core import default_dpam_layers, default_image_size
    from anomalyclip.engines.export import installed

    if architecture not in ARCHITECTURES:
        raise AnomalyCLIPError(f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURES)}")
    config = ARCHITECTURES[architecture]
    size = image_size or default_image_size(config)
    return {
        "architecture": architecture,
        "image_size": size,
        "gflop": encoder_gflop(config, image_size=size, dpam_layers=default_dpam_layers(config)),
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": installed(),
    }


@contextmanager
def place_of(folder: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield a folder, which is made if it is missing; None: a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    yield Path(folder)


class Exports:
    """The files of each runtime in a folder, made when they are asked for, unless they are there already."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = {name: about[name] for name in ("architecture", "image_size", "versions")}

    def of(self, runtime: str) -> tuple[tuple[Path, ...], float]:
        """Return the files and the largest difference from PyTorch in float32."""
        note = self.folder / f"{runtime}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = parse_json(note.read_text())
            files = tuple(self.folder / name for name in known["files"])
            if known["about"] == self.about and all(file.is_file() for file in files):
                return files, float("nan" if known["difference"] is None else known["difference"])
        files, difference = self._made(runtime)
        known = {
            "about": self.about,
            "files": [file.name for file in files],
            "difference": None if difference != difference else difference,
        }
        note.write_text(json.dumps(known))
        return files, difference

    @cached_property
    def detector(self) -> Detector:
        """The detector in PyTorch; its random weights and prompts are written for PyTorch's rows."""
        from safetensors.torch import save_file

        from anomalyclip.benchmark import ARCHITECTURES, random_model
        from anomalyclip.methods.anomalyclip import assemble

        clip, prompts = random_model(ARCHITECTURES[self.about["architecture"]])
        save_file(clip.state_dict(), self.folder / "weights.safetensors")
        prompts.save(self.folder / "prompts.safetensors")
        return Detector(
            assemble(clip, prompts, DetectorSpec(image_size=self.about["image_size"], device="cpu"))
        )

    def _made(self, runtime: str) -> tuple[tuple[Path, ...], float]:
        from PIL import Image

        from anomalyclip.engines.export import difference, export, probe_pixels

        detector, size = self.detector, self.about["image_size"]
        if runtime.startswith("torch"):
            files = (self.folder / "weights.safetensors", self.folder / "prompts.safetensors")
            if runtime != "torch-bf16":
                return files, float("nan")
            other = _pytorch(runtime, files[0], size).scorer
            return files, max(difference(other, detector.scorer, probe_pixels(size)))
        format, precision = runtime.split("-")
        images = []
        if precision == "int8":
            for number, pixels in enumerate(probe_pixels(size)):
                images.append(self.folder / f"{number}.png")
                Image.fromarray(pixels).save(images[-1])
        output = self.folder / f"{runtime}{'.onnx' if format == 'onnx' else '.xml'}"
        report = export(
            detector, output, format=format, precision=precision, dynamic_batch=True, calibration=images
        )
        return report.files, max(report.score_difference, report.map_difference)


def in_a_process(
    runtime: str,
    file: Path,
    size: int,
    batch: int,
    repeats: int,
    *,
    program: Sequence[str] = ("-m", "anomalyclip.engines.comparison"),
) -> dict[str, Any]:
    """Measure one runtime in a process of its own.

    Parameters
    ----------
    runtime : str
        One of `RUNTIMES`.
    file : Path
        Of the weights, or the exported file.
    size, batch, repeats : int
        Side of the images, images per batch, and runs.
    program : sequence of str
        What Python runs; it is given the other arguments as JSON, and prints what `measure` returns.

    Returns
    -------
    dict
        seconds (per image), start_up (seconds) and peak_memory (MB), or failure.
    """
    task = {"runtime": runtime, "file": str(file), "size": size, "batch": batch, "repeats": repeats}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    start = time.time()
    done = subprocess.run(
        [sys.executable, *program, json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failure": lines[-1] if lines else f"the process ended with exit code {done.returncode}"}
    result = dict(json.loads(done.stdout.splitlines()[-1]))
    result["start_up"] = result.pop("first_score_at") - start
    return result


def _measure(runtime: str, file: str, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Load and measure: the work of one row's process. Only PyTorch's rows import PyTorch."""
    detector = (
        _pytorch(runtime, Path(file), size) if runtime.startswith("torch") else Detector.from_exported(file)
    )
    return measure(detector.scorer, size, batch, repeats)


def measure(
    score: Callable[[NDArray[np.uint8]], object], size: int, batch: int, repeats: int
) -> dict[str, float]:
    """Score once, then time: a batch of resized pixels (B, S, S, 3) to scores and maps."""
    pixels: NDArray[np.uint8] = np.random.default_rng(0).integers(
        0, 256, (batch, size, size, 3), dtype=np.uint8
    )
    score(pixels)
    first_score_at = time.time()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        score(pixels)
        times.append(time.perf_counter() - start)
    return {"seconds": min(times) / batch, "first_score_at": first_score_at, "peak_memory": peak_memory()}


def _pytorch(runtime: str, weights: Path, size: int) -> Detector:
    return DetectorSpec(
        os.fspath(weights),
        prompts=os.fspath(weights.with_name("prompts.safetensors")),
        image_size=size,
        device="cpu",
        precision="bf16" if runtime == "torch-bf16" else "fp32",
        compiled=runtime == "torch-compiled",
        engine="torch",
    ).load()


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
