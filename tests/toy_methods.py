"""Methods that are not the package's: as anybody would write them, one class each."""

import numpy as np

from anomalyclip.scorer import Description


class Dark:
    """Calls a pixel anomalous as far as it is dark; the score of an image is that of its darkest pixel."""

    name = "dark"

    def __init__(self, spec):
        self.image_size = spec.image_size or 56

    def __call__(self, pixels):
        maps = self.anomaly(pixels.mean(axis=3, dtype=np.float32) / 255)  # B S S
        return maps.max(axis=(1, 2)), maps

    def anomaly(self, gray):
        return 1 - gray

    def identity(self):
        return {"method": self.name, "image_size": self.image_size}

    def describe(self):
        return Description(f"{self.name} pixels")


class Bright(Dark):
    """The opposite, with the same settings."""

    name = "bright"

    def anomaly(self, gray):
        return gray
