"""Writes a model as a folder that other programs load: mlx-lm, transformers, PyTorch nanochat."""
