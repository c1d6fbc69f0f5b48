"""MLflow as a view of local files: the only room that imports MLflow, and only once something is to be sent."""
