"""Small data sets in MVTec AD's layout: noise, and squares of another brightness as defects, with their masks."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_set(
    root: Path,
    *,
    classes: tuple[str, ...] = ("nut", "tile"),
    normal: int = 4,
    anomalous: int = 6,
    side: int = 84,
    contrast: int = 60,
    seed: int = 0,
) -> Path:
    """Write the set and return its folder."""
    random = np.random.default_rng(seed)
    for name in classes:
        for kind, count in (("good", normal), ("spot", anomalous)):
            for index in range(count):
                pixels = random.normal(128, 12, (side, side, 3))
                if kind == "spot":
                    mask = np.zeros((side, side), bool)
                    top, left = random.integers(0, side - 16, 2)
                    mask[top : top + 14, left : left + 14] = True
                    pixels[mask] += contrast
                    write(root / name / "ground_truth" / kind / f"{index:03}_mask.png", mask * np.uint8(255))
                write(root / name / "test" / kind / f"{index:03}.png", pixels.clip(0, 255).astype(np.uint8))
    return root


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
