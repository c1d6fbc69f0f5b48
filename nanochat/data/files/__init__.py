"""Reading local files: rows out of each format, digests, and checks before a run."""
