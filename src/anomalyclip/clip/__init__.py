"""The frozen CLIP: model, weights in every published form, named backbones, tokenizer."""
