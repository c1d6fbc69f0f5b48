"""Loss and gradients of the whole model in NumPy, for training on a CPU; `mlx_arrays` is the entry."""
