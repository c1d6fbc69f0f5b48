"""Checking a merged recipe: types, ranges and cross-references, with error messages."""
