"""Data sets: the catalogue, folder layouts, meta.json, samples as tensors, generated images."""
