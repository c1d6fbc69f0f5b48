"""Reads models of other programs: PyTorch nanochat, mlx-lm, transformers, and NanoChat MLX."""
