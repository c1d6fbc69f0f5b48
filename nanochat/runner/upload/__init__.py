"""Build what MLflow should show about a run, and upload it in the background."""
