"""Planned and measured peak memory of training steps and evaluations at several model shapes.

    python tests/benchmarks/memory.py [--device cpu|gpu] [--only TEXT] [--save FILE] [--beside FILE ...]
                                       [--threads 1]
    NANOCHAT_KERNELS=mlx python tests/benchmarks/memory.py [--device cpu|gpu] [--dtype float32] [--parallel 8]

The plan's numbers come from `nanochat/plan/estimate/memory/`. On a GPU the peak size of MLX's arrays is measured; on
a CPU the peak size of a process that runs only this case, Python and its libraries included, as in a stage's record.
Takes about a minute on a GPU and some minutes on a CPU; uses random tokens, no files and no network.

With `NANOCHAT_KERNELS=mlx` a CPU or CUDA computes what Metal does, and the peak size of MLX's arrays is compared with
the plan for a Mac. CUDA then submits work in pieces as large as Metal's, and uses no fused attention, whose gradient
Metal does not have. A CPU multiplies in bfloat16 at a few GFLOP/s: measure it with `--dtype float32`, several cases at
a time (`--parallel`). MLX compiles the step with a C++ compiler there.

Prints planned and measured MiB of each case, then all of them as a Markdown table. `--save` writes the results to a
file; `--beside` adds columns with results saved on other devices.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
from parts.measuring import option_parser, training_step

from nanochat import runtime
from nanochat.data.loaders.batches import Batch
from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.memory import evaluation, training
from nanochat.plan.estimate.memory.sizes import Dtype

if TYPE_CHECKING:  # MLX is imported after `runtime.prepare`
    from nanochat.model.dispatch import FastGPT

UNIT = 2**20
METAL_ON_CUDA = {"MLX_MAX_OPS_PER_BUFFER": "50", "MLX_MAX_MB_PER_BUFFER": "50", "MLX_CUDA_USE_CUDNN_SDPA": "0"}
"""Makes MLX on CUDA submit work in pieces as on an M Max or Ultra (`metal/device.cpp`), without cuDNN's attention."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One workload: the model's shape, the kind of work, and the rows per forward pass."""

    shape: str
    work: str
    rows: int
    accumulated: int = 1
    """Micro-batches per step."""
    recompute: bool = False
    devices: tuple[str, ...] = ("cpu", "gpu")

    @property
    def config(self) -> GPTConfig:
        return SHAPES[self.shape]

    @property
    def name(self) -> str:
        passes = f"{self.accumulated} x " if self.accumulated > 1 else ""
        tokens = f"{passes}{self.rows} x {self.config.sequence_len:,}"
        return f"{self.shape}, {self.work}{', activation checkpointing' if self.recompute else ''}, {tokens}"


SHAPES = {
    "quickstart (1.8M)": GPTConfig(n_layer=4, n_embd=128, n_head=2, n_kv_head=2, sequence_len=256, vocab_size=2048),
    "d4 (37M)": GPTConfig.from_depth(4),
    "speedrun (286M)": GPTConfig.from_depth(12),
    "d12, windows L (286M)": GPTConfig(window_pattern="L"),
}
QUICK, D4, REAL, LONG = SHAPES
ANSWERS = ("generate", "long answers")
CASES = (
    Case(shape=QUICK, work="pretrain", rows=16),
    Case(shape=QUICK, work="pretrain", rows=4, accumulated=4),
    Case(shape=QUICK, work="pretrain", rows=16, recompute=True),
    Case(shape=QUICK, work="sft", rows=16),
    Case(shape=QUICK, work="bpb", rows=16),
    Case(shape=QUICK, work="choices", rows=8, devices=("cpu",)),
    Case(shape=QUICK, work="choices", rows=32, devices=("gpu",)),
    Case(shape=QUICK, work="generate", rows=32),
    Case(shape=D4, work="pretrain", rows=2),
    Case(shape=D4, work="pretrain", rows=2, recompute=True),
    Case(shape=D4, work="sft", rows=2),
    Case(shape=D4, work="bpb", rows=2),
    Case(shape=D4, work="choices", rows=1, devices=("cpu",)),
    Case(shape=D4, work="choices", rows=4, devices=("gpu",)),
    Case(shape=D4, work="generate", rows=32, devices=("cpu", "gpu", "metal")),
    Case(shape=D4, work="long answers", rows=32, devices=("gpu", "metal")),
    Case(shape=D4, work="pretrain", rows=16, devices=("gpu",)),
    Case(shape=REAL, work="pretrain", rows=16, devices=("gpu",)),
    Case(shape=REAL, work="pretrain", rows=8, accumulated=2, devices=("gpu",)),
    Case(shape=REAL, work="pretrain", rows=16, recompute=True, devices=("gpu",)),
    Case(shape=REAL, work="sft", rows=16, devices=("gpu",)),
    Case(shape=REAL, work="bpb", rows=2, devices=("gpu",)),
    Case(shape=REAL, work="choices", rows=4, devices=("gpu",)),
    Case(shape=REAL, work="generate", rows=32, devices=("gpu",)),
    Case(shape=REAL, work="long answers", rows=32, devices=("gpu",)),
    *(
        Case(shape=shape, work="pretrain", rows=rows, recompute=recompute, devices=("metal",))
        for rows in (1, 2, 8)
        for shape in (REAL, LONG)
        for recompute in (False, True)
    ),
)


def planned_bytes(case: Case, dtype: Dtype) -> int:
    """Return the peak memory that the plan estimates."""
    config, length = case.config, case.config.sequence_len
    if case.work in ("pretrain", "sft"):
        step = training.training_memory(
            config,
            sequence_len=length,
            dtype=dtype,
            activation_checkpointing=case.recompute,
            on_metal=runtime.uses_only_mlx(),
        )
        return step.peak(case.rows, accumulates=case.accumulated > 1)
    if case.work in ANSWERS:
        return evaluation.decoding_bytes(config, rows=case.rows, tokens=length, dtype=dtype)
    tokens = case.rows * length
    return evaluation.scoring_bytes(config, tokens=tokens, gathers=case.work == "choices", dtype=dtype)


def run(case: Case, dtype: Dtype, steps: int) -> None:
    """Run a case once, on a model with random weights."""
    import mlx.core as mx

    from nanochat.model.dispatch import FastGPT

    model = FastGPT(case.config)
    if case.work in ("pretrain", "sft"):
        train(case, model, dtype, steps)
        return
    model.initialise(mx.random.key(0))
    chosen = mx.bfloat16 if dtype == "bfloat16" else mx.float32
    model.set_compute_dtype(chosen)
    model.cast_matrices(chosen)
    mx.eval(model.named_parameters())
    reset_gpu_peak()
    {"bpb": measure_bpb, "choices": choose, **dict.fromkeys(ANSWERS, generate)}[case.work](case, model)


def reset_gpu_peak() -> None:
    """Start measuring a GPU's peak here: a stage loads its weights and does not draw random ones."""
    import mlx.core as mx

    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()


def train(case: Case, model: FastGPT, dtype: Dtype, steps: int) -> None:
    """Do a few optimizer steps. In fine-tuning 30 % of the targets count."""
    from nanochat.train.step import Rates

    model.set_activation_checkpointing(case.recompute)
    rows, supervised = case.rows * case.accumulated, 1.0 if case.work == "pretrain" else 0.3
    step = training_step(model, rows=rows, micro_batch_size=case.rows, dtype=dtype)
    for number in range(steps):
        batch = random_rows(case.config, rows, supervised=supervised, seed=number)
        loss = step.run(batch, rates=Rates(lr_multiplier=0.1, momentum=0.95, weight_decay=0.0)).loss
    assert np.isfinite(loss.item()), "training diverged"


def measure_bpb(case: Case, model: FastGPT) -> None:
    from nanochat.evals.bits_per_byte import evaluate_bpb

    batches = [random_rows(case.config, case.rows, supervised=1.0, seed=number) for number in range(3)]
    evaluate_bpb(model, batches, np.ones(case.config.vocab_size, np.int32))


def choose(case: Case, model: FastGPT) -> None:
    """Score questions of four options, with lengths distributed like ARC's, in the evaluation's batches."""
    from nanochat.evals.continuations import Continuation, score_continuations, tokens_per_batch

    draw, vocab_size = np.random.default_rng(0), case.config.vocab_size
    groups, tokens = [], 0
    while tokens < 3 * tokens_per_batch():
        asked = int(np.clip(draw.lognormal(3.3, 0.7), 8, 200))
        ends = np.clip(draw.geometric(0.12, 4), 1, 50).tolist()
        shared = draw.integers(0, vocab_size, asked).tolist()
        rows = [(*shared, *draw.integers(0, vocab_size, end).tolist()) for end in ends]
        groups.append([Continuation(row, asked) for row in rows])
        tokens += asked + sum(ends)
    score_continuations(model, groups)


def generate(case: Case, model: FastGPT) -> None:
    """Answer prompts that fill all but 16 tokens of the context, or prompts of 16 tokens for long answers.

    The buffers of long answers grow while they are decoded, until the context is full.
    """
    from nanochat.inference.engine import Engine
    from nanochat.tokenizer import bpe

    text = ["abc abd 0123456789 +-*/"]
    tokenizer = bpe.train(text, vocab_size=300, max_chars=1000, max_document_chars=1000)
    draw, length = np.random.default_rng(0), 16
    new_tokens = case.config.sequence_len - length
    if case.work == "generate":
        length, new_tokens = new_tokens, length
    prompts = draw.integers(10, tokenizer.vocab_size, (case.rows, length)).tolist()
    Engine(model, tokenizer).complete(prompts, max_tokens=new_tokens, max_rows=case.rows)


def random_rows(config: GPTConfig, rows: int, *, supervised: float, seed: int) -> Batch:
    draw = np.random.default_rng(seed)
    inputs, targets = (
        draw.integers(0, config.vocab_size, (rows, config.sequence_len), dtype=np.int32) for _ in range(2)
    )
    return Batch(inputs, np.where(draw.random(targets.shape) < supervised, targets, -1).astype(np.int32))


def measured_alone(case: Case, options: argparse.Namespace) -> int:
    """Return the peak of a process that runs only this case: its size on a CPU, that of MLX's arrays otherwise."""
    choices = ("--device", options.device, "--dtype", options.dtype)
    numbers = ("--steps", options.steps, "--threads", options.threads, "--alone", CASES.index(case))
    command = [sys.executable, __file__, *choices, *map(str, numbers)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run_alone(case: Case, chosen: runtime.Runtime, steps: int) -> int:
    """Run a case in this process and return the peak."""
    measures_process = chosen.backend == "cpu" and not runtime.uses_only_mlx()
    if measures_process:
        from nanochat.stages import base_eval, chat_eval, pretrain, sft  # noqa: F401 -- a stage's process loads these too
    from nanochat.model import dispatch

    unfused = mock.patch.object(dispatch, "has_fused_gradient", lambda queries, window: False)
    with unfused if runtime.uses_only_mlx() else nullcontext():
        run(case, chosen.dtype, steps)
    if measures_process:
        return own_peak()
    import mlx.core as mx

    mx.synchronize()
    return int(mx.get_peak_memory())


def own_peak() -> int:
    """Return the peak size of this process (Linux). `getrusage` would include the parent's size before exec."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def measure(options: argparse.Namespace, chosen: runtime.Runtime) -> dict[str, tuple[int, int]]:
    """Print planned and measured bytes of each case, and return them by the case's name."""
    kind = "metal" if runtime.uses_only_mlx() else "cpu" if chosen.backend == "cpu" else "gpu"
    cases = [case for case in CASES if kind in case.devices and options.only in case.name]

    def measure_case(case: Case) -> tuple[int, int]:
        began = time.perf_counter()
        pair = planned_bytes(case, chosen.dtype), measured_alone(case, options)
        print(f"{case.name}: {format_pair(pair)} MiB, {time.perf_counter() - began:.1f} s", flush=True)
        return pair

    with ThreadPoolExecutor(options.parallel) as pool:
        return dict(zip([case.name for case in cases], pool.map(measure_case, cases), strict=True))


def format_pair(pair: tuple[int, int] | None) -> str:
    if pair is None:
        return ""
    planned, measured = pair
    return f"{planned / UNIT:,.0f} / {measured / UNIT:,.0f} ({planned / measured - 1:+.0%})"


def table(columns: dict[str, dict[str, tuple[int, int]]]) -> str:
    """Return a Markdown table of planned and measured MiB, with one column per device."""
    lines = [f"| planned / measured MiB | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for case in CASES:
        cells = [format_pair(column.get(case.name)) for column in columns.values()]
        if any(cells):
            lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = option_parser(__doc__, parallel=1, steps=3, threads=1)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="auto; with Metal's path bfloat16")
    parser.add_argument("--only", default="", help="run only cases whose name contains this text")
    parser.add_argument("--save", type=Path, help="write the results to this file")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="add these saved results as columns")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    alone = None if options.alone is None else CASES[options.alone]
    trains = alone is not None and alone.work in ("pretrain", "sft")
    options.dtype = options.dtype or ("bfloat16" if runtime.uses_only_mlx() else "auto")
    if runtime.uses_only_mlx():
        for name, value in METAL_ON_CUDA.items():
            runtime.set_environment(name, value)
    chosen = runtime.prepare(options.device, options.dtype, options.threads, trains=trains)
    from nanochat.model.device import device_name, select_device

    select_device(chosen.backend)
    if alone is not None:
        print(run_alone(alone, chosen, options.steps))
        return 0
    name = device_name() if chosen.backend != "cpu" else "CPU"
    name = f"{name} with the path of Metal" if runtime.uses_only_mlx() else name
    column = f"{name}, {chosen.dtype}"
    results = measure(options, chosen)
    columns = {column: results}
    for path in options.beside:
        columns |= json.loads(path.read_text())
    if options.save is not None:
        options.save.write_text(json.dumps({column: results}, indent=1))
    print(f"\n{table(columns)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
