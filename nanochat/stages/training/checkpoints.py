"""Checkpoints of a stage that trains: saving, resuming, and loading the model that the stage passes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import JsonValue

from nanochat.checkpoint.model_folder import write_model_files
from nanochat.checkpoint.snapshots import (
    CheckpointView,
    find_damage,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from nanochat.model.dispatch import FastGPT
from nanochat.optim.optimizer import Optimizer
from nanochat.plan.specs.training import HandOn
from nanochat.stages.process.context import StageContext
from nanochat.stages.training.step_source import StepSource
from nanochat.stages.training.training_schedule import TrainingSchedule
from nanochat.storage.layout import checkpoint_folder
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.train.callbacks import TrainingPosition

_USED_SECONDS = "used_seconds"
"""The field of a checkpoint's state with the used part of a time budget."""


@dataclass(frozen=True)
class TrainingCheckpoints:
    """The checkpoints of a stage, and what they hold. With `hand_on: best`, each needs the best one so far."""

    context: StageContext
    model: FastGPT
    tokenizer: Tokenizer
    optimizer: Optimizer
    loader: StepSource
    schedule: TrainingSchedule
    hand_on: HandOn

    def resume(self) -> TrainingPosition | None:
        """Restore the newest checkpoint that can continue, and return its position, or None if there is none."""
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
        """Return why a checkpoint cannot continue, None if it can.

        The best model before it may be passed on, so that must not be damaged.
        """
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

    def save(self, position: TrainingPosition) -> None:
        """Write a checkpoint. Rank 0 writes it, and all other processes wait until it is complete."""
        if self.context.process_group.is_writer:
            self._write_checkpoint(position)
        self.context.process_group.barrier()

    def _write_checkpoint(self, position: TrainingPosition) -> None:
        arrays, json_state = split_state(self.loader.state_dict())
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

    def choose_model(self, position: TrainingPosition) -> int:
        """Return the step whose model and moments the stage passes on, and load them if training continued after it.

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


def split_state(state: Mapping[str, object]) -> tuple[dict[str, np.ndarray], dict[str, JsonValue]]:
    """Return the NumPy arrays of a loader's state, and its JSON values."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    json_state = {name: cast(JsonValue, value) for name, value in state.items() if name not in arrays}
    return arrays, json_state


def _fields(value: JsonValue) -> dict[str, int]:
    assert isinstance(value, dict), f"expected an object, found {value!r}"
    return dict(value)  # type: ignore[arg-type]  # the checkpoint's sha256 was verified
