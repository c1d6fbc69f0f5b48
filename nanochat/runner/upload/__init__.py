"""Builds what MLflow should show about a run, and uploads it in the background."""
