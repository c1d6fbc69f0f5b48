"""Jobs, contexts and documents in a temporary folder, and runs of a stage that trains, whole, stopped or killed."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest

from nanochat.checkpoint.model_folder import save_model
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import InterruptedRun
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.optim.groups import OptimizerConfig, build_groups
from nanochat.optim.optimizer import Optimizer
from nanochat.optim.schedules import TIME_PARTS, ScheduleConfig
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.inputs import SftItem, WeightedSource
from nanochat.plan.specs.job import Job, StageSpec
from nanochat.plan.specs.spec import StageName
from nanochat.plan.specs.training import PretrainSpec, SftSpec, TokenizerSpec
from nanochat.runtime import Runtime
from nanochat.stages import tokenizer
from nanochat.stages.process.context import StageContext
from nanochat.tokenizer import bpe

CPU = Runtime(backend="cpu", dtype="float32", blas="any", threads=1)
_CHAT_MODEL = GPTConfig(
    sequence_len=64, vocab_size=300, n_layer=2, n_head=2, n_kv_head=2, n_embd=32, window_pattern="SL"
)
MakeContext = Callable[..., StageContext]
OUTPUTS = (
    *("out/model/model.safetensors", "out/optimizer.safetensors", "out/samples.md", "out/result.json"),
    "metrics.jsonl",
)


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """A function that creates a stage folder in the test's folder and returns its context."""

    def make(
        spec: StageSpec,
        *,
        name: str = "stage",
        upstream: dict[StageName, str] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        **execution: Any,
    ) -> StageContext:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        job = Job(spec=spec, execution=ExecutionSpec(**execution), stage_dir=str(folder), upstream=upstream or {})
        return StageContext(job, base=tmp_path / "base", runtime=CPU, should_stop=should_stop, clock=clock)

    return make


def _command(context: StageContext) -> list[str]:
    return [sys.executable, "-m", "nanochat.stages", str(context.folder.job)]


def ticking_clock() -> Callable[[], float]:
    """A clock that a second passes at each look. The loop looks before and after each batch and each step: 2 s."""
    return itertools.count(1.0).__next__


class StageRuns:
    """Runs of a stage that trains. `options` are the upstream stages and the execution."""

    def __init__(self, make_context: MakeContext, stage: ModuleType, **options: Any) -> None:
        self.make_context, self.stage, self.options = make_context, stage, options

    def run(self, spec: StageSpec, name: str = "stage", **changes: Any) -> StageContext:
        """Run the stage to its end, or continue it there, and return its context."""
        context = self.make_context(spec, name=name, **{**self.options, **changes})
        context.write_result(self.stage.run(context.job, context))
        return context

    def stop(self, spec: StageSpec, name: str, call: int) -> StageContext:
        """Run the stage until it asks for the n-th time whether to stop: after a step, or inside a validation."""
        calls = itertools.count(1)
        with pytest.raises(InterruptedRun, match="saved"):
            self.run(spec, name, should_stop=lambda: next(calls) == call)
        return self.make_context(spec, name=name, **self.options)

    def check_stopped(self, spec: StageSpec, calls: Iterable[int], undisturbed: StageContext) -> None:
        """Require that runs which were stopped and continued end with the same bits as one that was not."""
        for call in calls:
            stopped = self.stop(spec, f"stopped{call}", call)
            assert not (stopped.out / "result.json").exists()
            self.run(spec, f"stopped{call}")
            assert self.contents(stopped) == self.contents(undisturbed), f"stopped at call {call}"

    def check_killed(self, spec: StageSpec, moments: Iterable[int], delays: Iterable[float] = (0.0,)) -> None:
        """Require the same of a process that SIGKILL ends after logging these numbers of lines, and after a delay."""
        undisturbed = self.run(spec, "undisturbed")
        for lines, delay in zip(moments, itertools.cycle(delays), strict=False):
            killed = self.kill(spec, "killed", lines=lines, delay=delay)
        subprocess.run(_command(killed), check=True, stdout=subprocess.DEVNULL)
        assert self.contents(killed) == self.contents(undisturbed)

    def kill(self, spec: StageSpec, name: str, *, lines: int, delay: float = 0.0) -> StageContext:
        """Run the stage in a process of its own until it has logged this number of lines, and kill it `delay` later."""
        killed = self.make_context(spec, name=name, **self.options)
        killed.folder.job.write_text(killed.job.model_dump_json())
        process = subprocess.Popen(_command(killed), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and len(self.series(killed)) < lines:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        return killed

    def check_timed(self, spec: StageSpec, *, steps: int, stop: int, resumed_steps: int) -> list[float]:
        """Require these steps of a horizon of half a minute, undisturbed and when stopped and continued.

        Return the learning rates of the undisturbed run. Every step takes two seconds of the clock.
        """
        undisturbed = self.run(spec, "undisturbed", clock=ticking_clock())
        calls = itertools.count(1)
        with pytest.raises(InterruptedRun, match=f"stopped after step {stop}, saved"):
            self.run(spec, "stopped", clock=ticking_clock(), should_stop=lambda: next(calls) == stop)
        stopped = self.run(spec, "stopped", clock=ticking_clock())
        for context, expected in ((undisturbed, steps), (stopped, resumed_steps)):
            assert self.metrics(context)["steps"] == expected
            assert 30 <= json.loads(context.folder.result_timings.read_text())["training_seconds"] < 32
        return [line["metrics"]["train/lr"] for line in self.series(undisturbed) if "train/lr" in line["metrics"]]

    @staticmethod
    def metrics(context: StageContext) -> dict[str, float]:
        return dict(json.loads((context.out / "result.json").read_text())["metrics"])

    @staticmethod
    def series(context: StageContext, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Return the complete lines of a metrics file, or nothing if there is no file yet."""
        path = context.folder.path / name
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @staticmethod
    def contents(context: StageContext) -> dict[str, bytes]:
        tables = [f"out/tables/{path.name}" for path in (context.out / "tables").glob("[!.]*.jsonl")]
        return {name: (context.folder.path / name).read_bytes() for name in (*OUTPUTS, *tables)}


@pytest.fixture
def make_runs(make_context: MakeContext) -> Callable[..., StageRuns]:
    """A function that returns the runs of a stage, for test files that cannot import this one."""
    return lambda stage, **options: StageRuns(make_context, stage, **options)


@pytest.fixture
def documents(tmp_path: Path) -> SourceSpec:
    """A source of forty documents of a few lines each, a quarter of them held out."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(40):
        lines = [f"line {j} of document {i}: the value is {(i * 37 + j * 11) % 100}" for j in range(3 + i % 5)]
        (folder / f"{i:02d}.txt").write_text("\n".join(lines))
    return SourceSpec(name="documents", path=(str(folder / "*.txt"),), validation_hash_frac=0.25)


@pytest.fixture
def tokenizer_spec(documents: SourceSpec) -> TokenizerSpec:
    return TokenizerSpec(source=documents, vocab_size=300, max_chars=100_000, max_document_chars=10_000, seed=1)


@pytest.fixture
def make_pretrain_spec(documents: SourceSpec) -> Callable[..., PretrainSpec]:
    """A function that returns a specification of pretraining on the documents, with four rows in a step."""

    def make(*, steps: int | None, sequence_len: int = 16, **changes: Any) -> PretrainSpec:
        shape: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 32, "window_pattern": "SL"}
        fields: dict[str, Any] = {
            "model": GPTConfig(sequence_len=sequence_len, vocab_size=300, **shape),
            "data": (WeightedSource(source=documents, weight=1.0),),
            "steps": steps,
            "tokens_per_step": 4 * sequence_len,
            "optimizer": OptimizerConfig(lr_scale=2.0),  # so small a batch halves the rates
            "schedule": ScheduleConfig(steps=steps or TIME_PARTS),
            "weight_decay": 0.1,
            "buffer_documents": 8,
            "long_documents": "keep",
            "init_from": None,
            "seed": 3,
        }
        return PretrainSpec(**{**fields, **changes})

    return make


@pytest.fixture
def make_sft_spec() -> Callable[..., SftSpec]:
    """A function that returns a specification of fine-tuning, with four rows of 64 tokens in a step."""

    def make(*items: SftItem, **changes: Any) -> SftSpec:
        fields: dict[str, Any] = {
            "data": items,
            **dict.fromkeys(("steps", "tokens", "epochs", "sequence_len", "init_from")),
            "tokens_per_step": 4 * 64,
            "optimizer": OptimizerConfig(lr_scale=2.0),  # so small a batch halves the rates
            "constant_frac": 0.5,
            "final_frac": 0.0,
            "buffer_conversations": 6,
            "seed": 3,
        }
        return SftSpec(**{**fields, **changes})

    return make


@pytest.fixture
def upstream(make_context: MakeContext, tokenizer_spec: TokenizerSpec) -> dict[StageName, str]:
    """The output of a tokenizer stage on the documents, as input of a later stage."""
    context = make_context(tokenizer_spec, name="tokenizer")
    tokenizer.run(context.job, context)
    return {"tokenizer": str(context.out)}


@pytest.fixture
def pretrained(tmp_path: Path) -> dict[StageName, str]:
    """The output of a pretrain stage: random weights, a tokenizer, and moments that are not zero."""
    out = tmp_path / "pretrain" / "out"
    tokenizer = bpe.train(
        ["what follows the word: 1 2 3? spell it"] * 20, vocab_size=300, max_chars=9999, max_document_chars=999
    )
    config = GPTConfig.from_dict({**_CHAT_MODEL.to_dict(), "vocab_size": tokenizer.vocab_size})
    model = FastGPT(config)
    model.initialise(mx.random.key(5))
    save_model(out / "model", model, tokenizer)
    optimizer = Optimizer(build_groups(config, OptimizerConfig(), tokens_per_step=256), model.named_parameters())
    keys = mx.random.split(mx.random.key(6), len(optimizer.state))
    moments = {
        name: mx.array(100, mx.int32) if name == "step" else 0.01 * mx.abs(mx.random.normal(value.shape, key=key))
        for (name, value), key in zip(optimizer.state.items(), keys, strict=True)
    }
    mx.save_safetensors(str(out / "optimizer.safetensors"), moments)
    return {"pretrain": str(out)}
