"""A sandbox for programs that a model wrote: `run` is what the rest of nanochat calls.

`run` starts one process, the `supervisor`. It forks the `program`'s process and the `judge`'s, and `confine` isolates
each of them before it runs anything. The judge runs the tests, and their calls and results cross as `plain_data`.
"""
