"""What a model may call: a calculator, and a sandbox for Python programs. Never imports MLX."""
