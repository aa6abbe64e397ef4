"""Draw the pictures of `anomalyclip demo`, from families that the micro backbone has never seen.

python -m recipes.micro.demo_pictures

Each picture is determined by the class, defect and seed below; none was chosen by what is detected in it.
"""

import argparse

from PIL import Image
from recipes.micro import run

from anomalyclip.data.synthetic import generate
from anomalyclip.demo import PICTURES
from anomalyclip.files import replacing

SEED, SIZE = 2026, 320
SHOWN = (
    ("asphalt", None),
    ("chipboard", "hole"),
    ("corduroy", None),
    ("corduroy", "stain"),
    ("honeycomb", None),
    ("linen", None),
    ("linen", "cut"),
    ("parquet", "scratch"),
    ("slate", None),
    ("slate", "crack"),
    ("snakeskin", "contamination"),
    ("wicker", "thread"),
)


def main() -> None:
    """Write the pictures as JPEG files, named by class and defect."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for index, (name, defect) in enumerate(SHOWN):
        sample = generate(name, seed=SEED, index=index, defect=defect, size=SIZE)
        with replacing(PICTURES / f"{name}_{defect or 'good'}.jpg") as temporary:
            Image.fromarray(sample.image).save(temporary, "JPEG", quality=90)


if __name__ == "__main__":
    run(main)
