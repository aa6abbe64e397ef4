"""Training: frozen features cached on disk, the published losses, and a trainer that can be stopped and resumed."""
