"""Evaluations: a model and data in, scores out."""
