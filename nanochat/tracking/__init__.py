"""Local metrics to MLflow: the only importer of mlflow."""
