"""Model and data to numbers."""
