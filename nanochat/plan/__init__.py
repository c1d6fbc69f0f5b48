"""A recipe compiled into stages with every derived number. Pure: no MLX, no MLflow, no clock."""
