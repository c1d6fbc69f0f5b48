"""Writes files that survive crashes, and names the files of runs and stages."""
