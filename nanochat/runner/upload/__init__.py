"""Preparing a run's files for MLflow and uploading them."""
