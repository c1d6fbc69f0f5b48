"""The runs and stages on disk: their records, cache look-ups, locks, and the deletion of what is no longer needed."""
