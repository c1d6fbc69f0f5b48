"""Specifications, order and execution of the stages of a plan."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from nanochat.errors import RecipeError
from nanochat.model.config import GPTConfig
from nanochat.plan.plan import Plan
from nanochat.plan.specs.job import Job
from nanochat.plan.specs.spec import StageName
from nanochat.plan.specs.suites import ChatQuestionsSpec
from nanochat.plan.specs.training import RlSpec
from nanochat.plan.stages import STAGES
from nanochat.recipe.schema.recipe import STAGE_SECTIONS

Compile = Callable[..., Plan]

WITHOUT_PRETRAINING = tuple(f"{name}=null" for name in ("tokenizer", "model", "pretrain", "base_eval"))


def test_table_of_stages_has_the_order_of_the_recipe_sections() -> None:
    assert tuple(STAGES) == tuple(STAGE_SECTIONS) == get_args(StageName)


def test_plan_orders_stages_and_names_their_upstream(compiled: Compile) -> None:
    plan = compiled()
    assert [(stage.name, stage.upstream) for stage in plan.stages] == [
        ("tokenizer", ()),
        ("pretrain", ("tokenizer",)),
        ("base_eval", ("pretrain",)),
        ("sft", ("pretrain",)),
        ("chat_eval", ("sft",)),
    ]


def test_plan_lets_chat_eval_read_pretraining_without_sft(compiled: Compile) -> None:
    assert compiled("sft=null").stage("chat_eval").upstream == ("pretrain",)


def test_plan_lets_chat_eval_read_the_model_of_reinforcement_learning(compiled: Compile) -> None:
    plan = compiled("rl.data.spelling={task: simple_spelling, source: words}", "rl.max_tokens=64")
    assert plan.stage("rl").upstream == ("sft",)
    assert plan.stage("chat_eval").upstream == ("rl",)
    spec = plan.stage("rl").spec
    assert isinstance(spec, RlSpec)
    assert spec.optimizer.lr_scale == 0.05
    assert (spec.clip, spec.kl, spec.centre, spec.scale, spec.temperature, spec.top_k) == (
        None,
        0,
        "group",
        "none",
        1,
        50,
    )


def test_plan_lets_reinforcement_learning_practise_questions_of_ones_own(compiled: Compile, tmp_path: Path) -> None:
    """They are derived as suites of chat_eval are, from the training split, with a weight."""
    (tmp_path / "q.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    mine = "rl.data.mine={task: questions, source: q, grade: number, weight: 2}"
    plan = compiled("sources.q={path: q.jsonl}", mine, "rl.max_tokens=64")
    spec = plan.stage("rl").spec
    assert isinstance(spec, RlSpec)
    suite = spec.data["mine"].suite
    assert isinstance(suite, ChatQuestionsSpec)
    assert (suite.grade, suite.split, spec.data["mine"].weight) == ("number", "train", 2)
    assert [source.name for source in plan.stage("rl").sources] == ["q"]


def test_plan_lets_export_read_all_earlier_stages_for_its_card(compiled: Compile) -> None:
    plan = compiled("export={formats: {mlx: {}}}")
    assert plan.stage("export").upstream == ("tokenizer", "pretrain", "base_eval", "sft", "chat_eval")
    assert compiled("export={formats: {mlx: {}}, init_from: other}").stage("export").upstream == ()


def test_plan_takes_the_suites_of_an_export_from_chat_eval(compiled: Compile) -> None:
    export = "export={formats: {mlx: {}}, check: {suites: [%s]}}"
    plan = compiled(export % "spelling")
    spec = plan.stage("export").spec
    assert spec.suites == plan.stage("chat_eval").spec.suites
    with pytest.raises(RecipeError, match="`chat_eval` has no suite `speling`"):
        compiled(export % "speling")
    with pytest.raises(RecipeError, match="give at least one of `mlx`, `hf` and `torch`"):
        compiled("export={formats: {}}")


def test_plan_replaces_the_upstream_stage_by_starting_weights(compiled: Compile) -> None:
    plan = compiled("sft.init_from=other")
    assert plan.stage("sft").upstream == ()
    assert plan.stage("sft").init_from == "other"
    assert plan.stage("chat_eval").upstream == ("sft",)


def test_derive_sft_alone_uses_its_own_section(compiled: Compile) -> None:
    """Without a model section the row length is the checkpoint's, which the plan cannot know."""
    plan = compiled(*WITHOUT_PRETRAINING, "expect=null", "sft.init_from=other", "sft.tokens_per_step=1024")
    spec = plan.stage("sft").spec
    assert (spec.tokens_per_step, spec.sequence_len, spec.tokens) == (1024, None, 400_000)
    assert plan.stage("sft").estimate.flops is None


def test_derive_pretrain_derives_steps_and_schedule(compiled: Compile) -> None:
    """ceil(1,500,000 / 4096) = 367 steps; the seed's warm-down is 0.4 of them, round(146.8) = 147."""
    spec = compiled().stage("pretrain").spec
    assert (spec.steps, spec.tokens_per_step) == (367, 4096)
    assert spec.schedule.warmdown_steps == 147
    assert spec.model == GPTConfig(n_layer=4, n_embd=128, n_head=2, n_kv_head=2, sequence_len=256, vocab_size=2048)
    assert spec.weight_decay == 0.1
    assert spec.seed == 7


def test_derive_pretrain_keeps_a_given_weight_decay(compiled: Compile) -> None:
    plan = compiled("pretrain.optimizer={variant: current, weight_decay: 0.03}")
    assert plan.stage("pretrain").spec.weight_decay == 0.03


def test_derive_sft_inherits_batch_and_optimizer(compiled: Compile) -> None:
    """The learning rates of `current` are scaled by 0.8 on top of pretraining's own scale; constant to half."""
    spec = compiled("pretrain.optimizer={variant: current, lr_scale: 0.5, matrix_lr: 0.03}").stage("sft").spec
    assert spec.tokens_per_step == 4096
    assert spec.sequence_len == 256
    assert (spec.optimizer.variant, spec.optimizer.matrix_lr) == ("current", 0.03)
    assert spec.optimizer.lr_scale == pytest.approx(0.4)
    assert (spec.constant_frac, spec.final_frac) == (0.5, 0.0)


def test_derive_sft_turns_a_ratio_into_tokens(compiled: Compile) -> None:
    """Scaling parameters: 4 blocks of 12 * 128^2, lm_head 2048 * 128, 2 gates of 2 x 32 = 1,048,704; half of them."""
    spec = compiled("sft.horizon={ratio: 0.5}").stage("sft").spec
    assert (spec.steps, spec.tokens, spec.epochs) == (None, 524_352, None)


def test_derive_pretrain_sorts_the_mixture_by_name(compiled: Compile) -> None:
    """YAML maps have no order, so the order of writing must not decide anything."""
    sources = (
        "sources={b: {path: b.txt}, a: {path: a.txt}, stdlib: {builtin: python-stdlib}, words: {builtin: spelling}}"
    )
    plan = compiled(sources, "pretrain.data={b: {weight: 3}, a: {}}")
    assert [(item.source.name, item.weight) for item in plan.stage("pretrain").spec.data] == [
        ("a", 1.0),
        ("b", 3.0),
        ("stdlib", 1.0),
    ]


def test_plan_makes_local_paths_absolute(compiled: Compile, tmp_path: Path) -> None:
    spec = compiled("sources.stdlib={path: ../texts/*.txt}").stage("tokenizer").spec
    assert all(Path(path).is_absolute() for path in spec.source.path)


def test_derive_base_eval_measures_bpb_on_the_pretraining_mixture_by_default(compiled: Compile) -> None:
    spec = compiled().stage("base_eval").spec
    suite = spec.suites["bpb"]
    assert (suite.source.name, suite.split, suite.tokens) == ("stdlib", "validation", 131_072)


def test_execution_spec_comes_from_the_run_section(compiled: Compile) -> None:
    plan = compiled("run={device: cpu, micro_batch_size: 3, limits: {memory: 2G}, checkpoint: {keep: 5}}")
    execution = plan.stage("pretrain").execution
    assert (execution.device, execution.micro_batch_size, execution.checkpoint_keep) == ("cpu", 3, 5)
    assert execution.memory_limit_bytes == 2 * 2**30
    assert compiled().stage("pretrain").execution.micro_batch_size is None


def test_job_of_every_stage_survives_json(compiled: Compile) -> None:
    for stage in compiled().stages:
        job = Job(spec=stage.spec, execution=stage.execution, stage_dir="/stage", upstream={"tokenizer": "/out"})
        assert Job.model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        (("pretrain.data.mine={}",), "text"),
        (("base_eval.suites.mine={task: bpb, source: mine}",), "text"),
        (("sft.data.mine={task: conversations, source: mine}",), "chats"),
        (("sft.data.mine={task: gsm8k, source: mine}",), "rows"),
        (("run.monitor.evaluate.suites.mine={task: mmlu, source: mine}",), "rows"),
        (("run.monitor.evaluate.suites.mine={task: mmlu, source: mine}", "pretrain.data.mine={}"), "text"),
        (("sft.data.mine={task: conversations, source: mine}", "pretrain.data.mine={}"), None),
        (("sft.data.mine={task: simple_spelling, source: mine}",), None),
        (("base_eval.suites.mine={task: core, source: mine}",), "bundle"),
    ],
)
def test_plan_says_what_each_source_is_read_as(compiled: Compile, uses: tuple[str, ...], expected: str | None) -> None:
    plan = compiled("sources.mine={path: folder}", *uses)
    sources = [source for stage in plan.stages for source in stage.read_sources if source.name == "mine"]
    assert sources and {source.read_as for source in sources} == {expected}
