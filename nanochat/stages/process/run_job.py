"""Runs the stage that a job file describes in this process, alone or as one of several that train together.

With `--join BACKEND` this is one of the processes that `mlx.launch` started (`runner.process.launcher`), and it joins
the others first. Exit codes are those of `errors`; `process.exit` writes `error.txt`. A stage that succeeds writes
`out/result.json` last.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from nanochat import runtime
from nanochat.data.ingest.pending import convertible_files
from nanochat.data.ingest.store import unconverted_files
from nanochat.data.sources.source_downloads import check_download
from nanochat.errors import PreflightError, StageError
from nanochat.plan.specs.inputs import sources_of
from nanochat.plan.specs.job import Job
from nanochat.plan.stages import STAGES
from nanochat.plan.text.source_files import source_uses
from nanochat.stages.process.context import StageContext, StageResult
from nanochat.stages.process.exit import run_guarded
from nanochat.stages.process.process_group import NO_JOB_FILE, ProcessGroup, join_group, write_exit_code
from nanochat.stages.process.stop_flag import StopFlag
from nanochat.storage.files import write_text
from nanochat.storage.layout import StageFolder
from nanochat.terminal.output import protected_output


def main(arguments: list[str]) -> int:
    """Run the stage that the job file describes and return the exit code."""
    with protected_output("utf-8"):  # a full disk under the log must not end the stage
        return _main(arguments)


def _main(arguments: list[str]) -> int:
    match arguments:
        case [path]:
            return _run_alone(Path(path))
        case [path, "--join", backend]:
            return _run_in_group(Path(path), backend)
        case _:
            sys.stderr.write("usage: python -m nanochat.stages JOB.json [--join BACKEND]\n")
            return 2


def _run_alone(path: Path) -> int:
    job = Job.model_validate_json(path.read_bytes())
    # The tokenizer trains inside C++ and has no checkpoint to save, so the first signal ends the process.
    should_stop = StopFlag(is_final=not STAGES[job.spec.stage].has_model)
    should_stop.install()
    return run_guarded(job, lambda: _run(job, should_stop))


def _run_in_group(path: Path, backend: str) -> int:
    """Run one process's part of a stage. `mlx.launch` drops exit codes, so this one is also written to a file."""
    # `mlx.launch` polls its child's standard input in a busy loop until that is closed.
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, sys.stdin.fileno())
    stop_flag = StopFlag()
    stop_flag.install()
    try:
        content = path.read_bytes()
    except OSError:
        return _report_missing_job(path, backend)
    job = Job.model_validate_json(content)
    stop_file = StageFolder(path.parent).stop
    digest = int.from_bytes(hashlib.sha256(content).digest()[:4], "big") >> 1

    def run() -> None:
        _run(
            job,
            should_stop=lambda: stop_flag() or stop_file.exists(),
            join=lambda: join_group(backend, job_digest=digest, job_path=path),
        )

    code = run_guarded(job, run)
    write_exit_code(StageFolder(Path(job.stage_dir)), code)
    return code


def _report_missing_job(path: Path, backend: str) -> int:
    """Let the other processes know that this one cannot read the job file, and return the exit code."""
    runtime.prepare()
    try:
        join_group(backend, job_digest=NO_JOB_FILE, job_path=path)
    except PreflightError as error:
        sys.stderr.write(f"{error}\n")
    return PreflightError.exit_code


def _run(job: Job, should_stop: Callable[[], bool], join: Callable[[], ProcessGroup] = ProcessGroup) -> None:
    execution = job.execution
    # Before anything imports MLX: a fast BLAS must be loaded first.
    stage = STAGES[job.spec.stage]
    chosen = runtime.prepare(execution.device, execution.dtype, execution.threads, trains=stage.trains)
    if stage.has_model:
        _prepare_device(job, chosen)
    group = join()
    context = StageContext(job, base=runtime.base_dir(), runtime=chosen, should_stop=should_stop, process_group=group)
    context.log_line(chosen.describe() + (f", {group.size} processes" if group.size > 1 else ""))
    if stage.has_model and chosen.backend != "cpu":
        from nanochat.model.device import peak_bytes

        context.device_peak = peak_bytes
    context.report_progress(0.0, "starting")
    _check_data(job, context)
    if group.is_writer:
        _report_sources(job, context)
    try:
        result = run_stage(job, context)
        if group.is_writer:
            context.write_result(result)
    except (MemoryError, RuntimeError):  # perhaps out of memory: report to the parent how much was used
        context.write_heartbeat()
        raise
    context.report_progress(1.0, "done")
    group.barrier()


def _check_data(job: Job, context: StageContext) -> None:
    """Raise an error if a downloaded file, or the converted copy of a data file, is damaged."""
    sources = sources_of(job.data)
    for source in sources:
        check_download(source, base=context.base)
    paths = convertible_files(sources, base=context.base)
    if damaged := unconverted_files(paths, base=context.base, are_loaded=True):
        names = ", ".join(map(str, damaged))
        raise StageError(f"the converted copy is missing or damaged: {names}; the same command converts it again")


def _report_sources(job: Job, context: StageContext) -> None:
    """Write the files that the stage reads to its log, and to `sources.json` for the report."""
    planned = {use.source: use.files.left_out for use in source_uses(job.data, base=context.base)}
    lines = []
    for use in source_uses(job.data, base=context.base, look_inside=True):
        lines.append(use.describe())
        is_news = use.files.left_out != planned[use.source]  # the plan did not look into files
        (context.notify_user if is_news else context.log_line)(lines[-1])
    write_text(context.folder.sources, json.dumps(lines, indent=1), durable=False)


def _prepare_device(job: Job, chosen: runtime.Runtime) -> None:
    from nanochat.model.device import apply_memory_limits, select_device

    select_device(chosen.backend)
    apply_memory_limits(job.execution.memory_limit_bytes)


def run_stage(job: Job, context: StageContext) -> StageResult:
    """Run the job's stage in this process. Each stage's module is imported only when it runs."""
    module = importlib.import_module(STAGES[job.spec.stage].module)
    result: StageResult = module.run(job, context)
    return result
