"""Order, cache, resume, child processes and reports of a run."""
