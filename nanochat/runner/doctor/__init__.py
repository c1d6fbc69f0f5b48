"""Examines this machine and the installation: whether a recipe can run here, and what would make it faster."""
