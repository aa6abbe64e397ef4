"""Data sets: the catalogue, folder layouts, meta.json, generated images."""
