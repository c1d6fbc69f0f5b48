"""One function per stage, `run(job, context) -> StageResult`, and the process that runs it."""
