"""Combines a recipe with the recipes it extends, `--set` flags and variables."""
