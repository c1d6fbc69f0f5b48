"""A plan as text and JSON: its stages and their costs, what the estimates assume, and the files of the sources."""
