"""Runs of a recipe: cache, resume, child processes, reports. Never imports MLX, and MLflow only through `tracking`."""
