"""Implementations that are fast on a CPU."""
