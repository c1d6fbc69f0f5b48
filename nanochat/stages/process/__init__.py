"""The process around a stage: signals, how it ends, and groups of processes that train together."""
