"""One function per stage, `run(job, context) -> StageResult`, and the process that runs it.

A stage raises one of three errors:
- InterruptedRun: a signal asked it to stop. A checkpoint or the finished suites are saved.
- PreflightError: an input is missing.
- StageError: its inputs do not fit together, or training diverged.
"""
