"""Runs and cached stages on disk: records, locks, provenance, garbage collection."""
