"""Checks a merged recipe against the schema, and its references to sources, stages and suites."""
