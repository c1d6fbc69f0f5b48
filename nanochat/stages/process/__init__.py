"""The process around a stage: the job, the context that the stage sees, signals, exit codes, groups of processes."""
