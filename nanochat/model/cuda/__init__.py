"""CUDA kernels, and the forward pass composed of them, for MLX's CUDA backend."""
