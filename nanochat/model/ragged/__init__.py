"""Rows of different lengths in one batch, without padding."""
