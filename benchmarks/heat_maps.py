"""What a heat map of a large picture costs: scoring, drawing, and its PNG file by Pillow and by anomalyclip.

Run from the repository's root, on a quiet machine:

    python -m benchmarks.heat_maps [--width 4000] [--height 3000] [--repeats 3]

The picture is generated, with noise as of a camera, and is in memory. Scores are those of micro.
"""

import argparse
import io

import numpy as np
from PIL import Image

from anomalyclip import Detector
from anomalyclip.engines.floor import best_time
from anomalyclip.visualize import captioned
from anomalyclip.visualize.png import write_png


def picture(width: int, height: int) -> Image.Image:
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (height // 50 + 1, width // 50 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + chance.integers(-6, 7, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    detector, image = Detector.from_pretrained("micro"), picture(given.width, given.height)
    prediction = detector.predict(image)
    drawn = captioned(image, prediction)
    files = io.BytesIO(), io.BytesIO()
    drawn.save(files[0], "png")
    write_png(drawn, files[1])
    for name, work in (
        ("score", lambda: detector.predict(image)),
        ("draw", lambda: captioned(image, prediction)),
        (f"PNG by Pillow, {len(files[0].getvalue()) / 1e6:.1f} MB", lambda: drawn.save(io.BytesIO(), "png")),
        (
            f"PNG by anomalyclip, {len(files[1].getvalue()) / 1e6:.1f} MB",
            lambda: write_png(drawn, io.BytesIO()),
        ),
    ):
        print(f"{name}: {1e3 * best_time(work, repeats=given.repeats):.0f} ms")


if __name__ == "__main__":
    main()
