"""One module per published form of vision-only weights: its names, and what its configuration says."""
