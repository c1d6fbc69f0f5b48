"""Batches for training: packed rows, the position to resume from, and prefetching."""
