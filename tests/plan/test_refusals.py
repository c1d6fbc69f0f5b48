"""Recipes that a plan refuses. All problems are reported together, each with line, column and advice."""

from collections.abc import Callable

import pytest

from nanochat.errors import RecipeError
from nanochat.plan.compile import compile_plan
from nanochat.recipe.load import LoadedRecipe

Refusal = Callable[..., str]

MODEL = "model: {n_layer: 4, n_embd: 128, n_head: 2, sequence_len: 256}"
PRETRAIN = "  horizon: {tokens: 1.5M}\n  tokens_per_step: 4096\n"
SFT = "  horizon: {tokens: 400_000}\n"


@pytest.mark.parametrize(
    ("old", "new", "code", "place", "message", "advice"),
    [
        (
            MODEL,
            "model: {n_layer: 4, n_embd: 128, n_head: 3}",
            "impossible-shape",
            ":9:42",
            "`n_embd` 128 is not a multiple of `n_head` 3",
            "heads that fit `n_embd` 128: 1, 2, 4, 8 or 16",
        ),
        (
            MODEL,
            "model: {n_layer: 4, n_embd: 100}",
            "impossible-shape",
            ":9:29",
            "`n_embd` 100 is not a multiple of 128, so heads of 128 do not fit",
            "give `n_head` too, one of 1, 2, 5 or 10",
        ),
        (
            MODEL,
            "model: {depth: 8, n_kv_head: 3}",
            "impossible-shape",
            ":9:30",
            "`n_head` 4 is not a multiple of `n_kv_head` 3",
            "`n_kv_head` may be 1, 2 or 4",
        ),
        (
            MODEL,
            "model: {sequence_len: 256}",
            "missing-field",
            ":9:8",
            "`model` has neither `depth` nor `n_layer`",
            "depth: 12",
        ),
        (
            PRETRAIN,
            "  horizon: {steps: 10}\n  tokens_per_step: 4000\n",
            "uneven-batch",
            ":14:20",
            "4,000 tokens per step are not a whole number of rows of 256 tokens",
            "nearest that fit: 3840 and 4096",
        ),
        (
            PRETRAIN,
            "  horizon: {steps: 10}\n  tokens_per_step: 100\n",
            "uneven-batch",
            ":14:20",
            "100 tokens per step are not a whole number of rows of 256 tokens",
            "nearest that fit: 256",
        ),
        (
            PRETRAIN,
            "  horizon: {steps: 10}\n  tokens_per_step: 256\n  schedule: {warmup_steps: 8}\n",
            "schedule-too-long",
            ":15:28",
            "warm-up (8) and warm-down (4) together are longer than the horizon of 10 steps",
            "a warm-up of at most 6 steps fits",
        ),
        (
            PRETRAIN,
            "  horizon: {steps: 20}\n  tokens_per_step: 256\n  optimizer: {variant: current}\n",
            "schedule-too-long",
            ":13:12",
            "longer than the horizon of 20 steps",
            "the default of `current` is 40",
        ),
        (
            PRETRAIN,
            "  horizon: {epochs: 2}\n",
            "unknown-size",
            ":13:21",
            "`epochs` needs the number of training tokens",
            "`steps`, `tokens`, `ratio` or `flops`",
        ),
        (
            SFT,
            "  sequence_len: 512\n",
            "sequence-too-long",
            ":22:17",
            "rows of 512 tokens are longer than the model's context of 256",
            "at most 256",
        ),
        (
            SFT,
            "  sequence_len: 96\n",
            "uneven-batch",
            ":22:17",
            "4,096 tokens per step are not a whole number of rows of 96 tokens",
            "nearest that fit: 4032 and 4128",
        ),
        (
            SFT,
            f"{SFT}run: {{distributed: {{processes: 6}}}}\n",
            "uneven-shares",
            ":23:32",
            "pretrain's step of 16 rows cannot be shared equally by 6 processes",
            "numbers of processes that fit: 1, 2, 4, 8, 16; or change `tokens_per_step`",
        ),
        (
            SFT,
            f"{SFT}run: {{distributed: {{processes: 2, backend: jaccl}}}}\n",
            "missing-field",
            ":23:44",
            "`jaccl` needs the RDMA devices of each host",
            "give `run.distributed.hostfile`",
        ),
    ],
)
def test_compile_plan_reports_where_a_problem_is_and_what_to_do(
    refusal: Refusal, old: str, new: str, code: str, place: str, message: str, advice: str
) -> None:
    text = refusal(old, new)
    assert f"error[{code}]" in text
    assert f"recipe.yaml{place}\n" in text
    assert message in text
    assert advice in text


def test_compile_plan_reports_all_problems_together(refusal: Refusal) -> None:
    """Both mistakes of the recipe are listed in the order of their lines, with their number."""
    text = refusal(PRETRAIN, "  horizon: {epochs: 2}\n  tokens_per_step: 1000\n")
    assert text.index("error[unknown-size]") < text.index("error[uneven-batch]")
    assert text.endswith("2 errors in the recipe")


def test_compile_plan_needs_the_batch_of_fine_tuning_alone(load: Callable[..., LoadedRecipe]) -> None:
    """Without pretraining, the batch has no default."""
    with pytest.raises(RecipeError, match=r"`sft.tokens_per_step` is not given"):
        compile_plan(
            load(
                *(f"{name}=null" for name in ("tokenizer", "model", "pretrain", "base_eval")),
                "expect=null",
                "sft.init_from=base",
            )
        )


def test_compile_plan_leaves_out_digests_that_are_not_known(load: Callable[..., LoadedRecipe]) -> None:
    plan = compile_plan(load(), digests=lambda source: None if source.name == "words" else "abc")
    assert plan.stage("tokenizer").source_digests == {"stdlib": "abc"}
    assert plan.stage("sft").source_digests == {}
