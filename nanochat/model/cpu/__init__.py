"""Implementations of attention and loss that are fast on a CPU."""
