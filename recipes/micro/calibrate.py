"""Set the thresholds of the micro backbone on generated images of training families, half of them with a defect.

python -m recipes.micro.calibrate
"""

import argparse

import numpy as np
from PIL import Image
from recipes.micro import ASSETS, read_config, run
from recipes.micro.data import resized_mask

from anomalyclip.data.synthetic import TRAINING_DEFECTS, TRAINING_SURFACES, Sample, generate
from anomalyclip.detector import Detector
from anomalyclip.images import squash
from anomalyclip.metrics import f1_max
from anomalyclip.prediction import Threshold


def main() -> None:
    """Score images, each of a different product, and write threshold.json: the best F1 of images and of pixels."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    settings = read_config()["calibration"]
    scorer = Detector.from_pretrained("micro", device="cpu").scorer
    samples = [_draw(settings["seed"], index) for index in range(settings["images"])]
    images = [squash(Image.fromarray(sample.image), scorer.image_size) for sample in samples]
    masks = np.stack([resized_mask(sample.mask, scorer.image_size) for sample in samples])
    found = [scorer(np.stack(images[at : at + 30])) for at in range(0, len(images), 30)]
    scores, maps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    threshold = Threshold(
        score=round(f1_max(masks.any(axis=(1, 2)), scores).threshold, 4),
        pixel=round(f1_max(masks, maps).threshold, 4),
        info={
            "backbone": "micro",
            "calibrated_on": "generated images of training surfaces, half of them with a defect; best F1",
            **settings,
            "identity": scorer.identity(),
        },
    )
    threshold.to_file(ASSETS / "threshold.json")
    print(threshold)


def _draw(seed: int, index: int) -> Sample:
    surfaces, defects = list(TRAINING_SURFACES), list(TRAINING_DEFECTS)
    number = index // 2
    defect = defects[number % len(defects)] if index % 2 else None
    return generate(surfaces[number % len(surfaces)], seed=seed, index=index, defect=defect)


if __name__ == "__main__":
    run(main)
