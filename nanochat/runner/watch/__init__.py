"""Follows a run from another process: how far it is, and its curve so far."""
