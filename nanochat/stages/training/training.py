"""The part that all stages that train a model share: the training loop connected to the stage's folder.

It logs metrics, reports progress, and writes the trained model. Not here: the data, the model's initial weights and the
learning rates, which each stage passes in; checkpoints (`checkpoints`), and the loop itself (`train.loop`).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import mlx.core as mx

from nanochat.checkpoint.arrays import write_arrays
from nanochat.checkpoint.model_folder import save_model
from nanochat.errors import StageError
from nanochat.model.device import device_name, peak_flops
from nanochat.model.dispatch import FastGPT
from nanochat.optim.groups import MuonGroup
from nanochat.optim.optimizer import Optimizer
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.training import HandOn
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext
from nanochat.stages.training.checkpoints import TrainingCheckpoints, split_state
from nanochat.stages.training.monitored_suites import MonitoredSuites
from nanochat.stages.training.step_source import Observed, StepSource
from nanochat.stages.training.training_schedule import TrainingSchedule
from nanochat.storage.series import TRAIN_LOSS
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.train.callbacks import Intervals, LoopCallbacks, StepReport, TrainingPosition
from nanochat.train.loop import train
from nanochat.train.step import Rows, Step, TrainStep

_PROBE_TOKENS = 16
"""The model that a stage passes on must have finite logits for this number of tokens. Few need no memory."""


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
        self.context, self.model, self.tokenizer = context, model, tokenizer
        self.optimizer, self.loader, self.schedule, self.observe = optimizer, loader, schedule, observe
        self.checkpoints = TrainingCheckpoints(context, model, tokenizer, optimizer, loader, schedule, hand_on)
        execution, on_gpu = context.job.execution, context.runtime.backend != "cpu"
        model.set_compute_dtype(mx.bfloat16 if context.runtime.dtype == "bfloat16" else mx.float32)
        model.set_activation_checkpointing(execution.activation_checkpointing)
        self.gradient_step = TrainStep(
            model, optimizer, micro_batch_size=micro_batch_size, world=context.process_group.mlx_group
        )
        self.step: Step = self.gradient_step
        """The step that the loop runs: `gradient_step`, or a step of the stage that calls it."""
        self.peak_flops = peak_flops(device_name(), context.runtime.dtype) if on_gpu else None
        if on_gpu and self.peak_flops is None and "pretrain" not in context.job.upstream:  # once in a run
            context.notify_user(f"the peak rate of {device_name()} is not known, so no `train/mfu` is logged")
        self.peak_lr = next(group.lr for group in optimizer.groups if isinstance(group, MuonGroup))
        stage = context.job.spec.stage
        self.lr_field = "pretrain.optimizer.lr_scale" if stage == "pretrain" else f"{stage}.lr_scale"
        """The recipe's field that scales the learning rates."""
        self.tokens_per_second: float | None = None
        self._suites: MonitoredSuites | None = None

    def run(
        self,
        *,
        at_start: Callable[[], object] | None = None,
        evaluate: Callable[[TrainingPosition], float] | None = None,
        suites: MonitoredSuites | None = None,
        sample: Callable[[TrainingPosition], None] | None = None,
    ) -> TrainingPosition:
        """Train to the end, from the newest undamaged checkpoint if there is one, and return the last position.

        `at_start` is called before the first step, unless there is a checkpoint.
        """
        self._suites = suites
        start = self.checkpoints.resume()
        if start is None and at_start is not None:
            at_start()
        callbacks = LoopCallbacks[Rows](
            next_batch=self._next_batch,
            describe_batch=self._describe_batch,
            rates=self.schedule.rates,
            log=self._log,
            save=self.checkpoints.save,
            evaluate=evaluate,
            run_suites=suites.run if suites is not None and suites.are_any else None,
            sample=sample,
            should_stop=self.context.should_stop,
            after_step=self._report_progress,
            clock=self.context.clock,
        )
        intervals, schedule = _intervals_of(self.context.job.execution), self.schedule
        try:
            position = train(
                self.step,
                callbacks,
                intervals,
                last_step=schedule.last_step,
                lr_field=self.lr_field,
                budget=schedule.budget,
                start=start,
            )
        finally:
            self.loader.close()
        if skipped := position.nonfinite_streak:
            self.context.notify_user(
                f"left out {several(skipped, 'step')} at the end, because loss or gradients were not finite; the last "
                f"model is that of step {position.step - skipped:,}"
            )
        return position

    def timings(self) -> dict[str, float]:
        """Return peak memory, speed, the time of suites and, with a horizon in minutes, the used seconds."""
        timings = {"peak_memory_bytes": float(mx.get_peak_memory())}
        if self._suites is not None and self._suites.are_any:
            timings["suite_seconds"] = self._suites.seconds()
        if self.schedule.budget is not None:
            timings["training_seconds"] = self.schedule.budget.used
        if self.tokens_per_second is not None:
            timings["tokens_per_second"] = self.tokens_per_second
        return timings

    def write_output(self) -> None:
        """Write `out/model/` and the optimizer's moments, which the next stage starts from.

        The last update can make weights or logits infinite without any loss or gradient to show it. That raises a
        StageError.
        """
        broken = [name for name, value in self.model.named_parameters().items() if not mx.isfinite(value).all().item()]
        probe = mx.arange(min(_PROBE_TOKENS, self.model.config.vocab_size, self.model.config.sequence_len))[None]
        if not broken and not mx.isfinite(self.model(probe)).all().item():
            broken = ["its logits"]
        if broken:
            raise StageError(
                f"the model has diverged: {', '.join(broken[:3])} are not finite after the last step\n"
                f"  lower the learning rate (`{self.lr_field}`)"
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
        _, state = split_state(self.loader.state_dict())
        return f"the loader's state after it is {json.dumps(state)}"

    def _log(self, report: StepReport) -> None:
        step, result = report.position.step, report.result
        if result.is_applied:
            metrics = {TRAIN_LOSS: float(result.loss), "train/grad_norm": float(result.grad_norm)}
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
        if self._suites is not None and self._suites.scores:
            parts.append(self._suites.describe())
        self.context.report_progress(self.schedule.fraction(position.step), " · ".join(parts))


def _intervals_of(execution: ExecutionSpec) -> Intervals:
    """Return how often a stage logs, validates, samples and saves."""
    minutes = execution.checkpoint_every_minutes
    return Intervals(
        log_every_steps=execution.log_every_steps,
        evaluate_every_steps=execution.validate_every_steps,
        suites_every_steps=execution.suites_every_steps if execution.has_suites else None,
        sample_every_steps=execution.sample_every_steps if execution.prompts else None,
        save_every_steps=execution.checkpoint_every_steps,
        save_every_seconds=None if minutes is None else 60 * minutes,
    )
