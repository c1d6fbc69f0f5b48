"""Examples to train on and to be graded by. No model calls, no MLX."""
