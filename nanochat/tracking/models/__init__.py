"""Models in MLflow: logged models, what was measured on them, and registered models."""
