"""Kernels and the forward pass for NVIDIA GPUs (MLX's CUDA backend)."""
