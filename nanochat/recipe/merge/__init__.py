"""Combining a recipe with its parents, `--set` overrides and variables."""
