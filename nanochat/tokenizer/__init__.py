"""Converts text to token ids and back, and conversations to token ids with a loss mask."""
