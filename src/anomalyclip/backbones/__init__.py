"""Vision-only transformers (DINOv2, DINO, plain ViTs) in every published form, and the table of all backbones."""
