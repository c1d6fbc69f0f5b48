"""Tasks: examples to train on, and rules that grade a model's answers. No model calls, no MLX."""
