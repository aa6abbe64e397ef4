"""Training: frozen features kept on disk, the published losses, and a trainer that survives being stopped."""
