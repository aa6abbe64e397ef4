"""Peak memory of `anomalyclip predict --tile` on large images; map, heat map and mask are saved.

    python benchmarks/large_images.py [--megapixels 25 100] [--mode RGB|I;16]

Each run is a separate process with an exported file of the micro backbone; the images are LZW TIFFs in a temporary
folder.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

# A process that prints its peak resident memory when it ends.
RUN = """
import atexit, sys
from anomalyclip.cli import main
def tell():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(line.split()[1], file=sys.stderr)
atexit.register(tell)
sys.argv = ["anomalyclip", *sys.argv[1:]]
main()
"""


def run(*arguments: object) -> float:
    """Run a command and return its peak memory in GB."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stderr.split()[-1]) / 1e6


def draw(path: Path, megapixels: float, mode: str) -> None:
    """Write a 4:3 image of smooth noise."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((height * 4 // 3, height))
    if mode != "RGB":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image.save(path, compression="tiff_lzw")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, nargs="+", default=[25, 101])
    parser.add_argument("--mode", choices=["RGB", "I;16"], default="RGB")
    parser.add_argument("--tile", type=int, default=1024)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run("export", "--backbone", "micro", "--dynamic-batch", "--output", folder / "micro.onnx")
        small = 0.0
        for megapixels in (0.25, *arguments.megapixels):
            image = folder / f"{megapixels:g}.tif"
            draw(image, megapixels, arguments.mode)
            options = ["--model", folder / "micro.onnx", "--tile", arguments.tile, "--batch-size", 8]
            options += ["--threshold", 0.5, "--save", "map", "--save", "heatmap", "--save", "mask"]
            peak = run("predict", image, *options, "--output", folder / f"{megapixels:g}")
            small = small or peak
            beyond = f"{peak - small:.2f} GB more than the first"
            print(f"{megapixels:6g} megapixels, {arguments.mode}: {peak:.2f} GB, {beyond}", flush=True)


if __name__ == "__main__":
    main()
