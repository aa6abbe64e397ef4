"""A detector as one file that needs no PyTorch: the export, and the runtime that runs what was exported."""
