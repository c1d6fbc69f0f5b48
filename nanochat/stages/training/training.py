"""The part that pretraining and fine-tuning share: the training loop connected to the stage's folder.

It saves checkpoints and resumes from them, logs metrics, and writes the trained model. Not here: the data, the model's
initial weights and the learning rates, which each stage passes in; the loop itself is `train.loop`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
from pydantic import JsonValue

from nanochat.checkpoint.arrays import write_arrays
from nanochat.checkpoint.model_folder import save_model, write_model_files
from nanochat.checkpoint.snapshots import (
    CheckpointView,
    find_damage,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from nanochat.errors import StageError
from nanochat.model.device import device_name, peak_flops
from nanochat.model.dispatch import FastGPT
from nanochat.optim.groups import MuonGroup
from nanochat.optim.optimizer import Optimizer
from nanochat.plan.specs import ExecutionSpec, HandOn
from nanochat.stages.process.context import StageContext
from nanochat.stages.training.schedule import TrainingSchedule
from nanochat.stages.training.steps import Observed, StepSource
from nanochat.storage.layout import checkpoint_folder
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.train.callbacks import Intervals, LoopCallbacks, StepReport, TrainingPosition
from nanochat.train.loop import train
from nanochat.train.step import Rows, Step, TrainStep

_USED_SECONDS = "used_seconds"
"""The field of a checkpoint's state with the used part of a time budget."""


class Training:
    """A model that is trained in place, its optimizer and its data, connected to the stage's folder.

    The tokenizer is saved beside the weights. `micro_batch_size` is the number of rows per forward pass. `hand_on` says
    which model the stage passes on: `best` needs a validation. `observe` returns what the stage measured of the latest
    step; without it, each step trains on as many tokens as planned.
    """

    def __init__(
        self,
        context: StageContext,
        *,
        model: FastGPT,
        tokenizer: Tokenizer,
        optimizer: Optimizer,
        loader: StepSource,
        schedule: TrainingSchedule,
        micro_batch_size: int,
        hand_on: HandOn = "last",
        observe: Callable[[], Observed] | None = None,
    ):
        self.hand_on = hand_on
        self.context, self.model, self.tokenizer = context, model, tokenizer
        self.optimizer, self.loader, self.schedule, self.observe = optimizer, loader, schedule, observe
        execution, on_gpu = context.job.execution, context.runtime.backend != "cpu"
        model.set_compute_dtype(mx.bfloat16 if context.runtime.dtype == "bfloat16" else mx.float32)
        model.set_activation_checkpointing(execution.activation_checkpointing)
        self.gradient_step = TrainStep(
            model, optimizer, micro_batch_size=micro_batch_size, world=context.process_group.mlx_group
        )
        self.step: Step = self.gradient_step
        """What the loop runs: the step itself, or one that a stage puts around it."""
        self.peak_flops = peak_flops(device_name(), context.runtime.dtype) if on_gpu else None
        if on_gpu and self.peak_flops is None and "pretrain" not in context.job.upstream:  # once in a run
            context.notify_user(f"the peak rate of {device_name()} is not known, so no `train/mfu` is logged")
        self.peak_lr = next(group.lr for group in optimizer.groups if isinstance(group, MuonGroup))
        self.tokens_per_second: float | None = None

    def run(
        self,
        *,
        at_start: Callable[[], object] | None = None,
        evaluate: Callable[[TrainingPosition], float] | None = None,
        sample: Callable[[TrainingPosition], None] | None = None,
    ) -> TrainingPosition:
        """Train to the end, from the newest undamaged checkpoint if there is one, and return the last position.

        `at_start` is called before the first step, unless there is a checkpoint.
        """
        start = self._resume()
        if start is None and at_start is not None:
            at_start()
        callbacks = LoopCallbacks[Rows](
            next_batch=self._next_batch,
            describe_batch=self._describe_batch,
            rates=self.schedule.rates,
            log=self._log,
            save=self._save,
            evaluate=evaluate,
            sample=sample,
            should_stop=self.context.should_stop,
            after_step=self._report_progress,
            clock=self.context.clock,
        )
        intervals, schedule = intervals_of(self.context.job.execution), self.schedule
        try:
            return train(
                self.step, callbacks, intervals, last_step=schedule.last_step, budget=schedule.budget, start=start
            )
        finally:
            self.loader.close()

    def choose_model(self, position: TrainingPosition) -> int:
        """Return the step whose model and moments the stage passes on, and load them if training went on after it.

        Raises:
            StageError: the checkpoint of the best step is damaged.
        """
        if self.hand_on == "last":
            return position.step
        best = position.best_step
        assert best is not None, "`hand_on: best` without a validation; the plan refuses that"
        if best != position.step and self.context.process_group.is_writer:
            view = open_checkpoint(self.context.folder.checkpoints, best)
            self.model.set_parameters(view.arrays("model"))
            self.optimizer.load_state(view.arrays("optimizer"))
        self.context.log_line(f"passes on the model of step {best:,}: its validation loss is the lowest")
        return best

    def timings(self) -> dict[str, float]:
        """Return peak memory, speed and, with a horizon in minutes, the used seconds, for the stage's result."""
        timings = {"peak_memory_bytes": float(mx.get_peak_memory())}
        if self.schedule.budget is not None:
            timings["training_seconds"] = self.schedule.budget.used
        if self.tokens_per_second is not None:
            timings["tokens_per_second"] = self.tokens_per_second
        return timings

    def write_output(self) -> None:
        """Write `out/model/` and the optimizer's moments, which the next stage starts from.

        The last update can make weights infinite without any loss or gradient to show it. That raises a StageError.
        """
        broken = [name for name, value in self.model.named_parameters().items() if not mx.isfinite(value).all().item()]
        if broken:
            raise StageError(
                f"the model has diverged: {', '.join(broken[:3])} are not finite after the last step\n"
                "  lower the learning rate (`optimizer.lr_scale`)"
            )
        if not self.context.process_group.is_writer:
            return
        write_arrays(self.context.folder.optimizer, self.optimizer.state)
        save_model(self.context.folder.model, self.model, self.tokenizer)

    def _next_batch(self) -> Rows | None:
        try:
            return self.loader.next()
        except StopIteration:
            return None

    def _describe_batch(self) -> str:
        _, state = _split_state(self.loader.state_dict())
        return f"the loader's state after it is {json.dumps(state)}"

    def _resume(self) -> TrainingPosition | None:
        view = latest_checkpoint(
            self.context.folder.checkpoints, self.context.notify_user, find_problem=self._find_problem
        )
        self.context.process_group.require_same(view.step if view is not None else -1, "the checkpoint to resume from")
        if view is None:
            self.context.restore_progress(None)
            return None
        position = self._restore(view)
        self.context.notify_user(f"resuming after step {position.step:,}")
        return position

    def _find_problem(self, view: CheckpointView) -> str | None:
        """Return why a checkpoint cannot continue: the best model before it may be passed on, and is damaged."""
        best = _fields(view.state["position"])["best_step"]
        if self.hand_on == "last" or best is None or best == view.step:
            return None
        problem = find_damage(checkpoint_folder(self.context.folder.checkpoints, best))
        return None if problem is None else f"the best model so far, of step {best:,}, is damaged: {problem}"

    def _restore(self, view: CheckpointView) -> TrainingPosition:
        self.model.set_parameters(view.arrays("model"))  # a model that diverged has values that are not finite
        self.optimizer.load_state(view.arrays("optimizer"))
        json_state = view.state["loader"]
        assert isinstance(json_state, dict), "the state's `loader` must be an object"
        self.loader.load_state_dict({**json_state, **view.numpy_arrays("loader")})
        self.context.restore_progress(view.path)
        position = TrainingPosition(**_fields(view.state["position"]))
        if self.schedule.budget is not None:
            used = view.state[_USED_SECONDS]
            assert isinstance(used, float), f"the state's `{_USED_SECONDS}` must be a number"
            self.schedule.budget.resume(used, steps=position.step)
        return position

    def _save(self, position: TrainingPosition) -> None:
        """Write a checkpoint. Rank 0 writes it, and all other processes wait until it is complete."""
        if self.context.process_group.is_writer:
            self._write_checkpoint(position)
        self.context.process_group.barrier()

    def _write_checkpoint(self, position: TrainingPosition) -> None:
        arrays, json_state = _split_state(self.loader.state_dict())
        used = {} if self.schedule.budget is None else {_USED_SECONDS: self.schedule.budget.used}

        def fill(folder: Path) -> None:
            write_model_files(folder, self.model, self.tokenizer)
            self.context.copy_progress(folder)

        save_checkpoint(
            self.context.folder.checkpoints,
            position.step,
            {"optimizer": self.optimizer.state, "loader": arrays},
            {"position": asdict(position), "loader": json_state, **used},
            keep=self.context.job.execution.checkpoint_keep,
            best=position.best_step,
            fill=fill,
        )

    def _log(self, report: StepReport) -> None:
        step, result = report.position.step, report.result
        if result.is_applied:
            metrics = {"train/loss": float(result.loss), "train/grad_norm": float(result.grad_norm)}
        else:
            metrics = {"train/skipped_steps": float(report.position.skipped_steps)}
        observed = self.observe() if self.observe is not None else Observed(tokens=self.schedule.tokens_per_step)
        lr = report.rates.lr_multiplier * self.peak_lr
        self.context.log_metrics(step, {**metrics, "train/lr": lr, **observed.metrics})
        self.tokens_per_second = observed.tokens / report.seconds
        timings = {
            "train/tokens_per_second": self.tokens_per_second,
            "train/step_seconds": report.seconds,
            "train/peak_memory_bytes": float(mx.get_peak_memory()),
            **observed.timings,
        }
        if self.peak_flops is not None and self.observe is None:
            flops = self.tokens_per_second * self.model.config.flops_per_token()
            timings["train/mfu"] = flops / (self.peak_flops * self.context.process_group.size)
        self.context.log_timings(step, timings)

    def _report_progress(self, position: TrainingPosition) -> None:
        parts = [self.schedule.describe_step(position.step)]
        if position.loss is not None:
            parts.append(f"loss {position.loss:.3f}")
        if self.observe is not None:
            parts.append(self.observe().text)
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        self.context.report_progress(self.schedule.fraction(position.step), " · ".join(parts))


def _split_state(state: Mapping[str, object]) -> tuple[dict[str, np.ndarray], dict[str, JsonValue]]:
    """Return the NumPy arrays of a loader's state, and its JSON values."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    json_state = {name: cast(JsonValue, value) for name, value in state.items() if name not in arrays}
    return arrays, json_state


def _fields(value: JsonValue) -> dict[str, int]:
    assert isinstance(value, dict), f"expected an object, found {value!r}"
    return dict(value)  # type: ignore[arg-type]  # the checkpoint's sha256 was verified


def intervals_of(execution: ExecutionSpec) -> Intervals:
    """Return how often a stage logs, validates, samples and saves."""
    minutes = execution.checkpoint_every_minutes
    return Intervals(
        log_every_steps=execution.log_every_steps,
        evaluate_every_steps=execution.validate_every_steps,
        sample_every_steps=execution.sample_every_steps if execution.prompts else None,
        save_every_steps=execution.checkpoint_every_steps,
        save_every_seconds=None if minutes is None else 60 * minutes,
    )
