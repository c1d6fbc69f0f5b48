"""The table of stages: everything that is true of one kind of stage and not of the others.

To add a stage, add its section to the recipe schema, its specification to `specs`, its stage function to
`nanochat.stages`, and a row here. `nanochat/README.md` explains each of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pydantic import JsonValue

from nanochat.model.config import GPTConfig
from nanochat.plan import describe
from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.derive.evals import derive_base_eval, derive_chat_eval
from nanochat.plan.derive.export import derive_export
from nanochat.plan.derive.identity import (
    base_eval_identity,
    chat_eval_identity,
    nondefault_fields,
    pretrain_identity,
    rl_identity,
    sft_identity,
)
from nanochat.plan.derive.pretrain import derive_pretrain, derive_tokenizer
from nanochat.plan.derive.rl import derive_rl
from nanochat.plan.derive.sft import derive_sft
from nanochat.plan.estimate.device_classes import DeviceClass
from nanochat.plan.estimate.estimate import Estimate, Setting
from nanochat.plan.estimate.evaluation import estimate_base_eval, estimate_chat_eval, estimate_export
from nanochat.plan.estimate.text_sizes import TextSizes
from nanochat.plan.estimate.training import estimate_pretrain, estimate_rl, estimate_sft, estimate_tokenizer
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec, ExportSpec
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.job import StageSpec
from nanochat.plan.specs.spec import Spec, StageName
from nanochat.plan.specs.training import PretrainSpec, RlSpec, SftSpec, TokenizerSpec
from nanochat.recipe.schema.recipe import STAGE_SECTIONS, Recipe

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S]):
    """One kind of stage."""

    name: StageName
    """Also the name of the recipe's section and of the stage's folder."""
    module: str
    """The module whose `run(job, context)` computes the stage. The child process alone imports it."""
    trains: bool = False
    """Whether the stage trains a model: it writes `out/model/` and may run on several processes."""
    evaluates: bool = False
    """Whether the stage scores a model, suite by suite."""
    exports: bool = False
    """Whether the stage writes a model for other programs. It reads the results of all earlier stages, for the card."""
    draws: bool
    """Whether the result depends on the recipe's seed."""
    code_version: int
    """Raise this after changing the numerics of the stage or one of its defaults, so that no older result is reused."""
    derived_fields: frozenset[str] = frozenset()
    """Fields of the section whose place in the stage's identity is taken by a derived value or a digest."""
    derive: Callable[[Any, Derivation], S]
    """Takes the recipe's section and returns the stage's specification."""
    identity: Callable[[Recipe, S], dict[str, JsonValue]] = lambda _recipe, _spec: {}
    """Returns what takes the place of `derived_fields`."""
    estimate: Callable[[S, Setting], Estimate]
    describe: Callable[[S], str]
    params: Callable[[S], Mapping[str, object]]
    outcome: Callable[[Mapping[str, float]], str]

    @property
    def has_model(self) -> bool:
        """Whether the stage works on a model, and so needs MLX and the device."""
        return self.trains or self.evaluates or self.exports

    @property
    def upstream(self) -> tuple[StageName, ...]:
        """Stages that can provide what this one starts from; the first of them that the recipe has is used."""
        return cast(tuple[StageName, ...], STAGE_SECTIONS[self.name].upstream)

    def identity_fields(self, recipe: Recipe, spec: S) -> dict[str, JsonValue]:
        """Return the fields of the stage's section that decide its result, by dotted recipe path."""
        section = getattr(recipe, self.name)
        return nondefault_fields(section, self.name, without=self.derived_fields) | self.identity(recipe, spec)


# `Any` because the functions of each row take the specification of that row.
_ROWS: tuple[Stage[Any], ...] = (
    Stage[TokenizerSpec](
        name="tokenizer",
        module="nanochat.stages.tokenizer",
        draws=False,
        code_version=4,
        derive=derive_tokenizer,
        estimate=estimate_tokenizer,
        describe=describe.describe_tokenizer,
        params=describe.tokenizer_params,
        outcome=describe.tokenizer_outcome,
    ),
    Stage[PretrainSpec](
        name="pretrain",
        module="nanochat.stages.pretrain",
        trains=True,
        draws=True,
        code_version=9,
        derived_fields=frozenset({"init_from", "horizon", "tokens_per_step", "schedule"}),
        derive=derive_pretrain,
        identity=pretrain_identity,
        estimate=estimate_pretrain,
        describe=describe.describe_pretrain,
        params=describe.pretrain_params,
        outcome=describe.pretrain_outcome,
    ),
    Stage[BaseEvalSpec](
        name="base_eval",
        module="nanochat.stages.base_eval",
        evaluates=True,
        draws=False,
        code_version=6,
        derived_fields=frozenset({"init_from"}),
        derive=derive_base_eval,
        identity=base_eval_identity,
        estimate=estimate_base_eval,
        describe=describe.describe_base_eval,
        params=describe.suite_params,
        outcome=lambda _: "measured how well the pretrained model predicts text and answers.",
    ),
    Stage[SftSpec](
        name="sft",
        module="nanochat.stages.sft",
        trains=True,
        draws=True,
        code_version=6,
        derived_fields=frozenset({"init_from", "horizon", "tokens_per_step", "sequence_len", "lr_scale", "schedule"}),
        derive=derive_sft,
        identity=sft_identity,
        estimate=estimate_sft,
        describe=describe.describe_sft,
        params=describe.sft_params,
        outcome=describe.sft_outcome,
    ),
    Stage[RlSpec](
        name="rl",
        module="nanochat.stages.rl.stage",
        trains=True,
        draws=True,
        code_version=3,
        derived_fields=frozenset({"init_from", "horizon", "lr_scale"}),
        derive=derive_rl,
        identity=rl_identity,
        estimate=estimate_rl,
        describe=describe.describe_rl,
        params=describe.rl_params,
        outcome=describe.rl_outcome,
    ),
    Stage[ChatEvalSpec](
        name="chat_eval",
        module="nanochat.stages.chat_eval",
        evaluates=True,
        draws=True,
        code_version=7,
        derived_fields=frozenset({"init_from"}),
        derive=derive_chat_eval,
        identity=chat_eval_identity,
        estimate=estimate_chat_eval,
        describe=describe.describe_chat_eval,
        params=describe.suite_params,
        outcome=lambda _: "put questions to the chat model and graded what it answered.",
    ),
    Stage[ExportSpec](
        name="export",
        module="nanochat.stages.export",
        exports=True,
        draws=True,
        code_version=1,
        derived_fields=frozenset({"init_from"}),
        derive=derive_export,
        estimate=estimate_export,
        describe=describe.describe_export,
        params=describe.export_params,
        outcome=describe.export_outcome,
    ),
)

STAGES: dict[str, Stage[Any]] = {stage.name: stage for stage in _ROWS}
"""All stages by name, in the order in which they run."""


def training_stages() -> tuple[StageName, ...]:
    """Return the stages that leave a model, in the order in which they run."""
    return tuple(stage.name for stage in STAGES.values() if stage.trains)


def evaluation_stages() -> tuple[StageName, ...]:
    """Return the stages that score a model, in the order in which they run."""
    return tuple(stage.name for stage in STAGES.values() if stage.evaluates)


def estimate_stage(
    spec: StageSpec,
    execution: ExecutionSpec,
    config: GPTConfig | None,
    device: DeviceClass,
    sizes: TextSizes,
) -> Estimate:
    """Return the estimate of one stage.

    `config` is its model, or None if only the starting weights know it.
    """
    stage = STAGES[spec.stage]
    if config is None and stage.has_model:
        return Estimate()
    return stage.estimate(spec, Setting(execution=execution, config=config, device=device, sizes=sizes))
