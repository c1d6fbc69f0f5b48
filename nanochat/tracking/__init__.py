"""Uploads runs to MLflow. The only room that imports MLflow, and only when there is something to upload."""
