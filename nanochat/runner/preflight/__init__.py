"""Checks before the first stage: data, memory, disk, hub commits, MLflow."""
