"""Order, cache, resume, child processes and reports of a run. Never imports MLX; MLflow only through `tracking`."""
