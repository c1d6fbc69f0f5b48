"""One function per stage, `run(job, context) -> StageResult`, and the process that runs it.

A stage raises InterruptedRun if a signal asked it to stop (a checkpoint or the finished suites are saved),
PreflightError if an input is missing, and StageError if its inputs do not fit or training diverged.
"""
