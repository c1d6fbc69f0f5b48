"""Saves and loads models and training checkpoints. A file is complete and verified, or it counts as missing."""
