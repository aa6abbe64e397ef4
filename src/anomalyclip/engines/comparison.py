"""Compare the runtimes: time, start-up, size and memory of the same detector, each in a separate process."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyclip.detector import Detector
from anomalyclip.errors import AnomalyCLIPError
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
) -> Iterator[RuntimeTiming]:
    """Export a detector with random weights in every format and time each on the CPU.

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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        detector = _prepare(architecture, size, folder)
        for runtime in runtimes:
            try:
                files, difference = _files(runtime, detector, folder)
            except Exception as error:  # if one export fails, the other rows are still measured
                failure = (
                    f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else repr(error)
                )
                yield from (RuntimeTiming(runtime, batch, failure=failure) for batch in batch_sizes)
                continue
            megabytes = sum(file.stat().st_size for file in files) / 1e6
            for batch in batch_sizes:
                before = limit(cpu).rate
                measured = _in_a_process(runtime, files[0], size, batch, repeats)
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


def _prepare(architecture: str, size: int, folder: Path) -> Detector:
    """Write random weights and prompts to files for the PyTorch rows, and return the detector."""
    from safetensors.torch import save_file

    from anomalyclip.benchmark import ARCHITECTURES, random_model
    from anomalyclip.methods.anomalyclip import assemble

    clip, prompts = random_model(ARCHITECTURES[architecture])
    save_file(clip.state_dict(), folder / "weights.safetensors")
    prompts.save(folder / "prompts.safetensors")
    return Detector(assemble(clip, prompts, DetectorSpec(image_size=size, device="cpu")))


def _files(runtime: str, detector: Detector, folder: Path) -> tuple[tuple[Path, ...], float]:
    from PIL import Image

    from anomalyclip.engines.export import difference, export, probe_pixels

    if runtime.startswith("torch"):
        files = (folder / "weights.safetensors", folder / "prompts.safetensors")
        if runtime != "torch-bf16":
            return files, float("nan")
        other = _pytorch(runtime, files[0], detector.scorer.image_size).scorer
        return files, max(difference(other, detector.scorer, probe_pixels(detector.scorer.image_size)))
    format, precision = runtime.split("-")
    images = []
    if precision == "int8":
        for number, pixels in enumerate(probe_pixels(detector.scorer.image_size)):
            images.append(folder / f"{number}.png")
            Image.fromarray(pixels).save(images[-1])
    output = folder / f"{runtime}{'.onnx' if format == 'onnx' else '.xml'}"
    report = export(
        detector, output, format=format, precision=precision, dynamic_batch=True, calibration=images
    )
    return report.files, max(report.score_difference, report.map_difference)


def _in_a_process(runtime: str, file: Path, size: int, batch: int, repeats: int) -> dict[str, Any]:
    task = {"runtime": runtime, "file": str(file), "size": size, "batch": batch, "repeats": repeats}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "anomalyclip.engines.comparison", json.dumps(task)],
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
    """Load, score once, then time: the work of one row's process. Only PyTorch's rows import PyTorch."""
    detector = (
        _pytorch(runtime, Path(file), size) if runtime.startswith("torch") else Detector.from_exported(file)
    )
    pixels: NDArray[np.uint8] = np.random.default_rng(0).integers(
        0, 256, (batch, size, size, 3), dtype=np.uint8
    )
    detector.scorer(pixels)
    first_score_at = time.time()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        detector.scorer(pixels)
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
    ).load()


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
