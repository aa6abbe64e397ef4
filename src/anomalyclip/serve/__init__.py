"""HTTP: a page to look at images with, and the same model for other programs."""
