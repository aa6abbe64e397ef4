"""Set the thresholds of the embedded backbone on flawless generated images of training families.

python -m recipes.micro.calibrate
"""

import argparse

import numpy as np
from PIL import Image
from recipes.micro import ASSETS, read_config

from anomalyclip.data.synthetic import TRAINING_SURFACES, generate
from anomalyclip.detector import Detector
from anomalyclip.images import squash
from anomalyclip.prediction import Threshold


def main() -> None:
    """Score flawless images, each of another product, and write threshold.json."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    settings = read_config()["calibration"]
    scorer = Detector.from_pretrained("micro", device="cpu").scorer
    names = list(TRAINING_SURFACES)
    images = [
        squash(
            Image.fromarray(generate(names[i % len(names)], seed=settings["seed"], index=i).image),
            scorer.image_size,
        )
        for i in range(settings["images"])
    ]
    found = [scorer(np.stack(images[at : at + 30])) for at in range(0, len(images), 30)]
    scores, maps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    threshold = Threshold(
        score=round(float(np.quantile(scores, 1 - settings["images_alarmed"])), 4),
        pixel=round(float(np.quantile(maps, 1 - settings["pixels_alarmed"])), 4),
        info={
            "backbone": "micro",
            "calibrated_on": "flawless generated images of training surfaces",
            **settings,
        },
    )
    threshold.to_file(ASSETS / "threshold.json")
    print(threshold)


if __name__ == "__main__":
    main()
