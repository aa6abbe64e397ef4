"""Draw the contact sheets of the documentation.

python -m recipes.micro.sheet docs/images
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from recipes.micro import run
from scipy.ndimage import binary_dilation

from anomalyclip.data.synthetic import CLASSES, DEFECTS, Sample, generate
from anomalyclip.files import replacing

PAIRS_A_ROW = 6
SCALE = 0.55


def framed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put a white frame around a picture."""
    return np.pad(picture, ((3, 3), (3, 3), (0, 0)), constant_values=255)


def arranged(pictures: list[NDArray[np.uint8]], a_row: int) -> Image.Image:
    """Arrange pictures in rows and scale them down."""
    rows = [np.concatenate(pictures[at : at + a_row], axis=1) for at in range(0, len(pictures), a_row)]
    sheet = Image.fromarray(np.concatenate(rows))
    return sheet.resize((round(sheet.width * SCALE), round(sheet.height * SCALE)), Image.Resampling.LANCZOS)


def classes_sheet() -> Image.Image:
    """Draw every class as a pair, the same scene without and with a defect; held-out classes last in each group."""
    pairs = []
    for number, name in enumerate(CLASSES):
        sample = generate(name, seed=11, index=number, defect=list(DEFECTS)[number % len(DEFECTS)])
        pairs.append(framed(np.concatenate([sample.normal, sample.image], axis=1)))
    return arranged(pairs, PAIRS_A_ROW)


def outlined(sample: Sample) -> NDArray[np.uint8]:
    """Return the image with the outline of its mask in red."""
    outside = binary_dilation(sample.mask, iterations=3)
    ring = outside & ~binary_dilation(sample.mask, iterations=2)
    return np.where(ring[..., None], np.array([230, 30, 30], np.uint8), sample.image)


def defects_sheet() -> Image.Image:
    """Draw every kind of defect on two materials; below each, the same image with the outline of its mask."""
    pictures = []
    for place, materials in enumerate((("leather", "tiles", "linen"), ("brushed", "wood", "gear"))):
        for number, kind in enumerate(DEFECTS):
            sample = generate(materials[number % 3], seed=21, index=10 * place + number, defect=kind)
            pictures.append(framed(np.concatenate([sample.image, outlined(sample)])))
    return arranged(pictures, len(DEFECTS))


def main() -> None:
    """Write both sheets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, sheet in (("classes", classes_sheet()), ("defects", defects_sheet())):
        with replacing(folder / f"synthetic_{name}.jpg") as temporary:
            sheet.save(temporary, "JPEG", quality=80)


if __name__ == "__main__":
    run(main)
