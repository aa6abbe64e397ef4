"""One module per published form of CLIP weights: its names, and what its configuration says."""
