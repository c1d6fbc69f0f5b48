"""One token of every row of a batch through the whole model, in five kernels per layer."""
