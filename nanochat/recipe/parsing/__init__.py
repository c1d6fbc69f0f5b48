"""Reads YAML with the place of every value, and shows errors in the source text."""
