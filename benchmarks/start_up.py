"""Time of a whole process that scores one image: `anomalyclip predict --model` with a small exported file.

    python benchmarks/start_up.py [--repeats 5]

The files are exported from the micro backbone. The runs of the two formats alternate, and the best of each is reported.
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
        times: dict[str, list[float]] = {format: [] for format in FORMATS}
        for number in range(repeats):
            for format, file in FORMATS.items():
                output = folder / f"{format}-{number}"
                run = ("predict", folder / "part.png", "--model", folder / file, "--output", output)
                times[format].append(seconds(*run))
    for format, values in times.items():
        print(f"{format}: best {min(values):.2f} s, worst {max(values):.2f} s")


if __name__ == "__main__":
    main()
