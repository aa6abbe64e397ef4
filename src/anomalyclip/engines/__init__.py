"""Detectors as one file that needs no PyTorch: the export, and the runtimes that run exported files."""
