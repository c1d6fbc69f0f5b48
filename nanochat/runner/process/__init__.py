"""Run one stage in a child process, or several that train together, and interpret how it ended."""
