"""Time of a whole process that scores one image: `anomalyclip predict` with and without an exported file.

    python benchmarks/start_up.py [--repeats 5]

The model is the micro backbone: with PyTorch, and exported in both formats. The runs alternate, and the best of each is
reported.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = {"onnx": "micro.onnx", "openvino": "micro.xml"}


def seconds(*arguments: object) -> float:
    """Run a command of the package and return the run time of its process."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "anomalyclip", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "part.png")
        for format, file in FORMATS.items():
            seconds("export", "--backbone", "micro", "--format", format, "--output", folder / file)
        ways: dict[str, tuple[object, ...]] = {"pytorch": ("--backbone", "micro")}
        ways |= {format: ("--model", folder / file) for format, file in FORMATS.items()}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(repeats):
            for way, options in ways.items():
                output = folder / f"{way}-{number}"
                times[way].append(seconds("predict", folder / "part.png", *options, "--output", output))
    slowest = min(times["pytorch"])
    for way, values in times.items():
        best = min(values)
        print(
            f"{way}: best {best:.2f} s, worst {max(values):.2f} s; {slowest / best:.1f} times as fast as pytorch"
        )


if __name__ == "__main__":
    main()
