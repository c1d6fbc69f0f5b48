"""Validates a model during training: loss and bits per byte on held-out text or chats."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.data.loaders.batches import Batch
from nanochat.errors import InterruptedRun, StageError
from nanochat.evals.bits_per_byte import BpbResult, evaluate_bpb
from nanochat.stages.training.training import Training
from nanochat.storage.series import VAL_BPB, VAL_LOSS
from nanochat.train.callbacks import TrainingPosition


@dataclass
class Validation:
    """Measures the model of a stage on held-out rows. `read` reads them once, at the first validation.

    `counts_specials` says whether the loss is the mean over all targets, as that of fine-tuning, or over those with
    text. Bits per byte always count targets with text.
    """

    training: Training
    read: Callable[[], Sequence[Batch]]
    unit: str
    """The counted unit, for the log: `held-out tokens`."""
    counts_specials: bool = False

    @functools.cached_property
    def batches(self) -> Sequence[Batch]:
        return self.read()

    def evaluate(self, position: TrainingPosition) -> float:
        """Return the validation loss in nats per token, and log it with the bits per byte."""
        context, schedule = self.training.context, self.training.schedule
        step = f"{schedule.describe_step(position.step)} · validating"
        fraction = schedule.fraction(position.step)

        def on_batch(tokens: int) -> None:
            if context.should_stop():
                raise InterruptedRun(f"stopped while validating at step {position.step:,}, saved")
            context.report_progress(fraction, f"{step} · {tokens:,} tokens")

        token_bytes = self.training.tokenizer.token_bytes
        result = evaluate_bpb(self.training.model, self.batches, token_bytes, on_batch=on_batch)
        if result.problem is not None:
            raise StageError(
                f"no val/bpb after step {position.step:,}: {result.problem}\n"
                f"  lower the learning rate (`{self.training.lr_field}`), or look at the held-out text"
            )
        loss, tokens = self._loss(result)
        context.log_metrics(position.step, {VAL_BPB: result.bpb, VAL_LOSS: loss})
        context.log_line(
            f"step {position.step:,}: validation loss {loss:.4f}, {result.bpb:.4f} bits per byte "
            f"on {tokens:,} {self.unit}"
        )
        return loss

    def _loss(self, result: BpbResult) -> tuple[float, int]:
        if self.counts_specials:
            return result.all_nats / result.all_tokens, result.all_tokens
        return result.nats / result.tokens, result.tokens


def validation_metrics(training: Training, position: TrainingPosition, passed_on: int) -> dict[str, float]:
    """Return the validation's measurements of the model that is passed on, and of the last model if the two differ.

    Metrics: `bpb`, `val_loss`; with `hand_on: best` also `handed_on_step` and `last_val_loss`. Empty if the stage does
    not validate, and in processes that log nothing.
    """
    logged = training.context.logged_metrics(passed_on)
    if VAL_LOSS not in logged:
        return {}
    metrics = {"bpb": logged[VAL_BPB], "val_loss": logged[VAL_LOSS]}
    if training.checkpoints.hand_on == "best":
        last = training.context.logged_metrics(position.step)
        metrics |= {"handed_on_step": float(passed_on), "last_val_loss": last[VAL_LOSS]}
    return metrics
