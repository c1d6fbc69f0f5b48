"""Batches for training: packed rows, prefetched and resumable."""
