"""The process of one stage: `python -m nanochat.stages JOB.json`, or one of those that train it together.

With `--world BACKEND` it is one of several that `mlx.launch` started (see `runner.leader`), and joins the others first.
Exit codes are those of `errors`. Whatever ends the process leaves its last words in `error.txt` in the stage's
folder: a message for the user, or a bug's traceback. `out/result.json` is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.plan.specs import BaseEvalSpec, ChatEvalSpec, Job, PretrainSpec, SftSpec, TokenizerSpec
from nanochat.stages.context import StageContext, StageResult
from nanochat.stages.process.exit import run_guarded
from nanochat.stages.process.group import STOP, UNREADABLE, World, join, write_ending
from nanochat.stages.process.signals import StopFlag


def main(arguments: list[str]) -> int:
    """Run the stage that the job file describes and return the exit code."""
    match arguments:
        case [path]:
            return _run_alone(Path(path))
        case [path, "--world", backend]:
            return _run_in_world(Path(path), backend)
        case _:
            sys.stderr.write("usage: python -m nanochat.stages JOB.json [--world BACKEND]\n")
            return 2


def _run_alone(path: Path) -> int:
    job = Job.model_validate_json(path.read_bytes())
    # The tokenizer stage trains inside C++ and has nothing to save: its first signal ends it.
    should_stop = StopFlag(is_final=job.spec.stage == "tokenizer")
    should_stop.install()
    return run_guarded(job, lambda: _run(job, should_stop))


def _run_in_world(path: Path, backend: str) -> int:
    """Run one process's part of a stage; the exit code is left in the stage's folder too, for `mlx.launch` drops it."""
    # `mlx.launch` spins on a child's standard input until it finds it closed.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    signalled = StopFlag()
    signalled.install()
    try:
        content = path.read_bytes()
    except OSError:
        return _leave_world(path, backend)
    job = Job.model_validate_json(content)
    asked = path.with_name(STOP)
    digest = int.from_bytes(hashlib.sha256(content).digest()[:4], "big") >> 1

    def run() -> None:
        _run(job, lambda: signalled() or asked.exists(), lambda: join(backend, job_digest=digest, job_path=path))

    code = run_guarded(job, run)
    write_ending(Path(job.stage_dir), code)
    return code


def _leave_world(path: Path, backend: str) -> int:
    """Tell the other processes that the job's folder is not to be seen from here, and return the exit code."""
    runtime.prepare()
    try:
        join(backend, job_digest=UNREADABLE, job_path=path)
    except PreflightError as error:
        sys.stderr.write(f"{error}\n")
    return PreflightError.exit_code


def _run(job: Job, should_stop: Callable[[], bool], enter: Callable[[], World] = World) -> None:
    execution = job.execution
    # Before anything imports MLX: a fast BLAS must be loaded first.
    chosen = runtime.prepare(execution.device, execution.dtype, execution.threads)
    if job.spec.stage != "tokenizer":
        _prepare_device(job, chosen)
    world = enter()
    context = StageContext(job, base=runtime.base_dir(), runtime=chosen, should_stop=should_stop, world=world)
    context.say(chosen.describe() + (f", {world.size} processes" if world.size > 1 else ""))
    if job.spec.stage != "tokenizer" and chosen.backend != "cpu":
        _watch_device(context)
    context.progress(0.0, "starting")
    try:
        result = run_stage(job, context)
        if world.is_writer:
            context.write_result(result)
    except (MemoryError, RuntimeError):  # a shortage, perhaps: the parent tells how much was in use
        with contextlib.suppress(OSError):
            context.beat()
        raise
    context.progress(1.0, "done")
    world.wait()


def _prepare_device(job: Job, chosen: runtime.Runtime) -> None:
    from nanochat.model.device import apply_memory_limits, select_device

    select_device(chosen.backend)
    apply_memory_limits(job.execution.memory_limit_bytes)


def _watch_device(context: StageContext) -> None:
    from nanochat.model.device import peak_bytes

    context.device_peak = peak_bytes


def run_stage(job: Job, context: StageContext) -> StageResult:
    """Run the job's stage in this process. Each stage is imported only when it runs."""
    match job.spec:
        case TokenizerSpec():
            from nanochat.stages import tokenizer

            return tokenizer.run(job, context)
        case PretrainSpec():
            from nanochat.stages import pretrain

            return pretrain.run(job, context)
        case BaseEvalSpec():
            from nanochat.stages import base_eval

            return base_eval.run(job, context)
        case SftSpec():
            from nanochat.stages import sft

            return sft.run(job, context)
        case ChatEvalSpec():
            from nanochat.stages import chat_eval

            return chat_eval.run(job, context)
        case _:
            assert_never(job.spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
