"""Running one stage in a child process and interpreting how it ended."""
