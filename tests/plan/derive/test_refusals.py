"""Recipes that a plan refuses. All problems are reported together, each with line, column and advice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.errors import RecipeError
from nanochat.plan.compile import compile_plan
from nanochat.recipe.load import LoadedRecipe

Refusal = Callable[..., str]
CheckGolden = Callable[[str, Path], None]

MODEL = "model: {n_layer: 4, n_embd: 128, n_head: 2, sequence_len: 256}"
PRETRAIN = "  horizon: {tokens: 1.5M}\n  tokens_per_step: 4096\n"
TEN_STEPS = "  horizon: {steps: 10}\n  tokens_per_step: 256\n"
SFT = "  horizon: {tokens: 400_000}\n"
RL = "rl:\n  data: {spelling: {task: simple_spelling, source: words}}\n"
MONITOR = "run: {monitor: {evaluate: "
SPELL = "{task: simple_spelling, source: words}"
WITHOUT_PRETRAINING = [f"{name}=null" for name in ("tokenizer", "model", "pretrain", "base_eval", "expect")]


REFUSED = {
    "heads that do not divide the width": (MODEL, "model: {n_layer: 4, n_embd: 128, n_head: 3}"),
    "a width without heads": (MODEL, "model: {n_layer: 4, n_embd: 100}"),
    "key heads that do not divide the heads": (MODEL, "model: {depth: 8, n_kv_head: 3}"),
    "no depth": (MODEL, "model: {sequence_len: 256}"),
    "a batch between two numbers of rows": (PRETRAIN, "  horizon: {steps: 10}\n  tokens_per_step: 4000\n"),
    "a batch below one row": (PRETRAIN, "  horizon: {steps: 10}\n  tokens_per_step: 100\n"),
    "a long warm-up": (PRETRAIN, f"{TEN_STEPS}  schedule: {{warmup_steps: 8}}\n"),
    "a long default warm-up": (PRETRAIN, f"{TEN_STEPS}  optimizer: {{variant: current}}\n"),
    "epochs of pretraining": (PRETRAIN, "  horizon: {epochs: 2}\n"),
    "two mistakes": (PRETRAIN, "  horizon: {epochs: 2}\n  tokens_per_step: 1000\n"),
    "rows longer than the context": (SFT, "  sequence_len: 512\n"),
    "rows that do not divide the inherited batch": (SFT, "  sequence_len: 96\n"),
    "processes that cannot share a step": (SFT, f"{SFT}run: {{distributed: {{processes: 6}}}}\n"),
    "the best model without validation": (
        PRETRAIN,
        f"{PRETRAIN}  hand_on: best\nrun: {{monitor: {{validate_every_steps: null}}}}\n",
    ),
    "the best chat model without held-out chats": (SFT, f"{SFT}  hand_on: best\n"),
    "a group of one answer": (SFT, f"{SFT}{RL}  samples_per_prompt: 1\n"),
    "a spread of one answer": (
        SFT,
        f"{SFT}{RL}  max_tokens: 64\n  samples_per_prompt: 1\n  advantage: {{centre: none, scale: std}}\n",
    ),
    "answers longer than the context": (SFT, f"{SFT}{RL}  max_tokens: 300\n  reward: {{form: '('}}\n"),
    "processes that cannot share the questions": (
        SFT,
        f"{SFT}{RL}  max_tokens: 64\n  prompts_per_step: 12\nrun: {{distributed: {{processes: 8}}}}\n",
    ),
    "two suites of one name during training": (
        SFT,
        f"{SFT}{MONITOR}{{suites: {{a: {{task: bpb}}}}, chat_suites: {{a: {SPELL}}}}}}}}}\n",
    ),
    "RDMA without a hostfile": (SFT, f"{SFT}run: {{distributed: {{processes: 2, backend: jaccl}}}}\n"),
}


def test_compile_plan_reports_where_each_problem_is_and_what_to_do(refusal: Refusal, check_golden: CheckGolden) -> None:
    """Read the difference after `pytest --update-golden`, which accepts every change of a message."""
    texts = [f"# {title}\n{refusal(old, new)}\n" for title, (old, new) in REFUSED.items()]
    check_golden("\n".join(texts), Path(__file__).with_name("refusals.txt"))


def test_compile_plan_needs_the_batch_of_fine_tuning_alone(load: Callable[..., LoadedRecipe]) -> None:
    """Without pretraining, the batch has no default."""
    with pytest.raises(RecipeError, match=r"`sft.tokens_per_step` is not given"):
        compile_plan(load(*WITHOUT_PRETRAINING, "sft.init_from=base"))


def test_compile_plan_leaves_out_digests_that_are_not_known(load: Callable[..., LoadedRecipe]) -> None:
    plan = compile_plan(load(), digests=lambda source: None if source.name == "words" else "abc")
    assert plan.stage("tokenizer").source_digests == {"stdlib": "abc"}
    assert plan.stage("sft").source_digests == {}
