"""Tools that a model can call: a calculator and a sandbox for Python programs. Does not import MLX."""
