"""The suites of evaluations: preparing them, running them, and saving what they measured."""
