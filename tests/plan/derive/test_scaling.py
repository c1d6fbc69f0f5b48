"""Derived numbers compared with arithmetic by hand, from the formulas and the reference's table of sizes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.model.config import GPTConfig
from nanochat.optim.groups import OptimizerConfig
from nanochat.plan.derive import scaling
from nanochat.plan.derive.model_shape import derive_model
from nanochat.recipe.schema import recipe as schema


def at_depth(depth: int, **more: object) -> GPTConfig:
    config, problems = derive_model(schema.Model(depth=depth, **more), vocab_size=32768)  # type: ignore[arg-type]
    assert not problems
    return config


@pytest.mark.parametrize(
    ("depth", "n_embd", "n_head", "millions"),
    [(4, 256, 2, 36.7), (6, 384, 3, 73.5), (8, 512, 4, 126), (12, 768, 6, 286), (20, 1280, 10, 897)],
)
def test_derive_model_gives_the_shapes_of_the_reference(depth: int, n_embd: int, n_head: int, millions: float) -> None:
    config = at_depth(depth)
    assert (config.n_layer, config.n_embd, config.n_head, config.n_kv_head) == (depth, n_embd, n_head, n_head)
    assert config.num_parameters() / 1e6 == pytest.approx(millions, rel=0.005)


def test_derive_model_rounds_odd_depths_up_to_whole_heads() -> None:
    """64 * 3 = 192 is rounded up to 256, and 64 to 128."""
    assert [at_depth(depth).n_embd for depth in (1, 3, 5)] == [128, 256, 384]


@given(st.integers(1, 10**13), st.integers(1, 2**21))
def test_steps_for_tokens_never_cuts_a_horizon_short(tokens: int, tokens_per_step: int) -> None:
    """The last step may overshoot, and one step less would fall short."""
    steps = scaling.steps_for_tokens(tokens, tokens_per_step)
    assert steps * tokens_per_step >= tokens
    assert steps == 1 or (steps - 1) * tokens_per_step < tokens


def test_horizon_tokens_of_a_ratio_or_flops_are_the_hand_computed_ones() -> None:
    """12 blocks of 12 * 768^2, lm_head 32768 * 768, 6 gates of 6 x 32: 110,101,632; FLOPs per token 802,167,552."""
    config = at_depth(12)
    scaling_parameters = 12 * 12 * 768**2 + 32768 * 768 + 6 * 6 * 32
    assert scaling.horizon_tokens(config, ratio=12) == 12 * scaling_parameters == 1_321_219_584
    assert scaling.horizon_tokens(config, flops=802_167_552e6) == pytest.approx(1e6, rel=1e-12)


@pytest.mark.parametrize(
    ("depth", "power"),
    [
        (12, 19),  # the reference itself
        (4, 18),  # N = 11,534,464: 19 + 0.383 * log2(11.534 / 110.10) = 17.75
        (8, 18),  # N = 41,943,552: 19 + 0.383 * log2(41.944 / 110.10) = 18.47
        (20, 20),  # N = 435,161,600: 19 + 0.383 * log2(435.16 / 110.10) = 19.76
    ],
)
def test_auto_batch_follows_the_power_law(depth: int, power: int) -> None:
    config = at_depth(depth)
    choice = scaling.auto_tokens_per_step(config, 12 * config.num_scaling_parameters())
    assert choice == scaling.Choice(2**power, None)


def test_auto_batch_leaves_256_steps_of_a_tiny_training() -> None:
    """1.5M tokens / 256 = 5859, so 2^12; the law alone would give 2^round(19 + 0.383 * log2(1.5 / 1321)) = 2^15."""
    config = GPTConfig(n_layer=4, n_embd=128, n_head=2, n_kv_head=2, sequence_len=256, vocab_size=2048)
    choice = scaling.auto_tokens_per_step(config, 1_500_000)
    assert choice.value == 4096
    assert "the batch law gives 32,768" in choice.note and "takes 4,096" in choice.note


@given(st.integers(1, 10**13), st.sampled_from([8, 96, 256, 1000, 2048, 65_536]))
def test_auto_batch_is_a_positive_number_of_whole_rows(tokens: int, sequence_len: int) -> None:
    value = scaling.auto_tokens_per_step(GPTConfig(sequence_len=sequence_len), tokens).value
    assert value >= sequence_len and value % sequence_len == 0


CURRENT = OptimizerConfig(variant="current")


def current_weight_decay(tokens: float, batch: int, optimizer: OptimizerConfig = CURRENT) -> scaling.Choice:
    config = at_depth(4, architecture="current")  # the law does not depend on the model's own size
    return scaling.muon_weight_decay(optimizer, config, tokens=tokens, tokens_per_step=batch)


D12_TOKENS = 12 * at_depth(12, architecture="current").num_scaling_parameters()


def test_weight_decay_of_the_current_optimizer_scales_with_batch_and_horizon() -> None:
    """0.28 * sqrt(B / 2^19) * (D_d12 / D): half of it for a quarter of the batch or twice the data."""
    assert current_weight_decay(D12_TOKENS, 2**19).value == pytest.approx(0.28)
    assert current_weight_decay(D12_TOKENS, 2**17).value == pytest.approx(0.14)
    assert current_weight_decay(2 * D12_TOKENS, 2**19).value == pytest.approx(0.14)


def test_weight_decay_of_a_short_training_follows_the_law() -> None:
    """100 steps of 2^17 tokens: 0.28 * sqrt(1 / 4) * 1.3212e9 / 1.3107e7 = 14.1, which is far beyond 2."""
    choice = current_weight_decay(100 * 2**17, 2**17)
    assert choice == scaling.Choice(pytest.approx(14.1, abs=0.05), None)


def test_weight_decay_of_a_small_batch_is_proportional_to_it() -> None:
    """Below 2^15 tokens the learning rates stay at a quarter, so the law has B / (1 / 4) instead of sqrt(B)."""
    at_the_end_of_the_scaling = current_weight_decay(D12_TOKENS, 2**15).value
    assert at_the_end_of_the_scaling == pytest.approx(0.07)
    assert current_weight_decay(D12_TOKENS, 2**12).value == pytest.approx(0.07 / 8)


@pytest.mark.parametrize("lr_scale", [1.0, 1.4])
def test_weight_decay_never_removes_more_than_thirty_percent_of_a_weight_in_a_step(lr_scale: float) -> None:
    """12 steps at a rate of 0.01: the law of 118 would remove 118 % of a weight, and 30 % is the limit."""
    choice = current_weight_decay(12 * 2**17, 2**17, replace(CURRENT, lr_scale=lr_scale))
    assert choice.value == pytest.approx(30 / lr_scale)
    assert choice.note is not None and "the scaling law gives 118" in choice.note


def test_weight_decay_of_the_plain_optimizer_does_not_scale() -> None:
    """0.1 is that of the golden training run."""
    choice = scaling.muon_weight_decay(OptimizerConfig(), at_depth(4), tokens=1, tokens_per_step=1)
    assert choice == scaling.Choice(0.1)
