"""Runs a stage in a child process, or in several that train together, and interprets how it ended."""
