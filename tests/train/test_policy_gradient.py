"""The policy gradient: against nanochat's own code, against its formula token by token, and what gets no gradient."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.train.policy_gradient import Objective, advantages, surrogate
from nanochat.train.policy_step import PolicyRows, PolicyStep, logprobs_of, policy_rows
from nanochat.train.rollouts import Answer
from nanochat.train.step import Rates, TrainStep

GOLDEN = Path(__file__).parent.parent / "golden"
RATES = Rates(lr_multiplier=1.0, momentum=0.9, weight_decay=0.0)
CLIPPED = Objective(scale="std", clip=0.2, kl=0.1)


def golden_model():
    arrays = mx.load(str(GOLDEN / "current_d1.safetensors"))
    facts = json.loads((GOLDEN / "current_d1.json").read_text())
    config = GPTConfig(architecture="current", **facts["config"])
    model = FastGPT(config)
    model.set_parameters({name: arrays[name].astype(mx.float32) for name in config.parameter_shapes()})
    return model


def answer(prompt, tokens, is_drawn, reward):
    return Answer(
        prompt=prompt,
        tokens=tokens,
        is_drawn=list(map(bool, is_drawn)),
        text="",
        grade=0.0,
        reward=reward,
        is_cut=False,
    )


def golden_groups(facts):
    return [[answer(group["prompt"], **a) for a in group["answers"]] for group in facts["groups"]]


def rows_of(groups, objective, *, is_padded=False):
    rows = policy_rows(groups, objective, prompts=len(groups))
    return PolicyRows(rows, valid_tokens=1, longest=256, is_padded=is_padded)


def assert_golden(golden, prefix, gradients):
    """Within 1e-4 of the largest entry, as the other golden gradients; every parameter is compared."""
    for name, gradient in gradients.items():
        matrix = np.array(gradient, np.float64)
        fingerprints = {"row": np.atleast_2d(matrix) @ np.sin(np.arange(matrix.shape[-1]) + 1.0)}
        fingerprints["col"] = np.cos(np.arange(np.atleast_2d(matrix).shape[0]) + 1.0) @ np.atleast_2d(matrix)
        found = {f"{prefix}.gradfp_{side}.{name}": value for side, value in fingerprints.items()}
        found |= {f"{prefix}.grad.{name}": matrix} if f"{prefix}.grad.{name}" in golden else {}
        for key, value in found.items():
            expected = np.array(golden[key], np.float64)
            largest = max(np.abs(expected).max(), np.abs(matrix).max())  # a projection's terms may cancel
            assert np.abs(value - expected).max() <= 1e-4 * largest, key


@pytest.mark.usefixtures("_each_path")
@pytest.mark.parametrize(("micro_batch_size", "is_padded"), [(100, False), (2, True)])
def test_policy_gradient_is_that_of_chat_rl(fakes, micro_batch_size, is_padded):
    """One of the three groups has equal rewards and adds nothing; forced tokens and a cut answer are among the rest."""
    golden, facts = mx.load(str(GOLDEN / "rl_d1.safetensors")), json.loads((GOLDEN / "rl_d1.json").read_text())
    optimizer = fakes["optimizer"]()
    step = PolicyStep(TrainStep(golden_model(), optimizer, micro_batch_size=micro_batch_size), Objective())
    result = step.run(rows_of(golden_groups(facts), Objective(), is_padded=is_padded), rates=RATES)
    assert result.loss.item() == pytest.approx(facts["chat_rl"]["loss"], rel=1e-5)
    assert_golden(golden, "chat_rl", optimizer.gradients)


def test_policy_gradient_with_clipping_and_penalty_is_that_of_pytorch(fakes):
    """The log-probabilities of the model that drew the answers, and of the model at the start, are given."""
    golden, facts = mx.load(str(GOLDEN / "rl_d1.safetensors")), json.loads((GOLDEN / "rl_d1.json").read_text())
    model, optimizer, given = golden_model(), fakes["optimizer"](), facts["clipped"]
    objective = Objective(scale="std", clip=given["clip"], kl=given["kl"])
    rows = rows_of(golden_groups(facts), objective)
    flat = {name: np.array(golden[f"clipped.{name}"], np.float64) for name in ("before", "start", "logprobs")}
    passes, loss, place = [], 0.0, 0
    for row in rows.rows:
        (part,) = PolicyRows([row], 1, 256, is_padded=False).lay_out(1)
        count = len(row.targets) - len(facts["groups"][len(passes) // 4]["prompt"]) + 1
        before, start, expected = (np.zeros(part.targets.shape) for _ in range(3))
        for array, name in ((before, "before"), (start, "start"), (expected, "logprobs")):
            array[0, -count:] = flat[name][place : place + count]
        place += count
        logprobs = logprobs_of(model, part.inputs, part.targets)
        assert np.abs(logprobs - expected * part.is_drawn).max() < 1e-4
        losses, weights = surrogate(logprobs, before, start, part.advantages, objective)
        loss += (losses * part.shares * part.is_drawn).sum()
        passes.append(part.weighted(weights))
    assert place == len(flat["before"])
    TrainStep(model, optimizer, micro_batch_size=1).run(Fixed(passes), rates=RATES)
    assert loss == pytest.approx(given["loss"], abs=1e-5)
    assert_golden(golden, "clipped", optimizer.gradients)


def test_policy_gradient_is_the_weighted_sum_of_each_token_gradient(fakes, config):
    """The formula in float64: the sum over drawn tokens of minus advantage / (prompts x drawn tokens of the group)
    times the gradient of that token's log-probability, each from a pass that scores this token alone."""
    rng = np.random.default_rng(5)
    groups = [
        [
            answer([3, 7, 9], rng.integers(0, 50, 6).tolist(), [1, 1, 0, 0, 1, 1], float(reward))
            for reward in rng.normal(size=3)
        ]
        for _ in range(2)
    ]
    expected, loss = {}, 0.0
    for group in groups:
        rewards = [a.reward for a in group]
        for a in group:
            ids = np.array([[*a.prompt, *a.tokens]], dtype=np.int32)
            for place in (place for place, is_drawn in enumerate(a.is_drawn) if is_drawn):
                weight = (a.reward - np.mean(rewards)) / (2 * 12)
                targets = np.full((1, ids.size - 1), -1, dtype=np.int32)
                targets[0, len(a.prompt) - 1 + place] = a.tokens[place]
                optimizer = fakes["optimizer"]()
                batch = fakes["rows"](ids[:, :-1], targets)
                loss += (
                    weight
                    * TrainStep(fakes["model"](config), optimizer, micro_batch_size=1)
                    .run(batch, rates=RATES)
                    .loss.item()
                )
                for name, gradient in optimizer.gradients.items():
                    expected[name] = expected.get(name, 0.0) + weight * np.array(gradient, np.float64)
    optimizer = fakes["optimizer"]()
    step = PolicyStep(TrainStep(fakes["model"](config), optimizer, micro_batch_size=4), Objective())
    result = step.run(PolicyRows(policy_rows(groups, Objective(), prompts=2), 24, 16, is_padded=False), rates=RATES)
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    for name, gradient in optimizer.gradients.items():
        assert np.abs(np.array(gradient) - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize(("reward", "text"), [("equal", "equal rewards"), ("forced", "no drawn token")])
def test_answers_without_signal_give_no_gradient(fakes, config, reward, text):
    optimizer = fakes["optimizer"]()
    forced, rewards = reward == "forced", [0.1, 0.1, 0.1] if reward == "equal" else [1.0, 0.0, 0.5]
    groups = [[answer([1, 2], [5, 6, 7], [not forced] * 3, r) for r in rewards]]
    rows = PolicyRows(policy_rows(groups, Objective(), prompts=1), 9, 16, is_padded=False)
    PolicyStep(TrainStep(fakes["model"](config), optimizer, micro_batch_size=4), Objective()).run(rows, rates=RATES)
    assert all(not mx.any(gradient).item() for gradient in optimizer.gradients.values()), text


def test_forced_tokens_change_only_the_context(fakes, config):
    """The loss does not depend on how likely a forced token is: only drawn tokens are targets."""
    group = [answer([1, 2], [5, 6, 7, 8], [1, 0, 0, 1], reward) for reward in (1.0, 0.0)]
    (row, _) = policy_rows([group], Objective(), prompts=1)
    assert row.inputs.tolist() == [1, 2, 5, 6, 7]
    assert row.targets.tolist() == [-1, 5, -1, -1, 8]
    assert row.share == 1 / 4


def test_advantages_follow_their_definition():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1], [3.0, 1.0, 1.0, 1.0]])
    centred = [[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [1.5, -0.5, -0.5, -0.5]]
    assert advantages(rewards, Objective()).tolist() == centred
    by_std = [[1, -1, -1, 1], [0.0] * 4, [3**0.5, *[-(3**-0.5)] * 3]]
    assert np.allclose(advantages(rewards, Objective(scale="std")), by_std, rtol=1e-5)
    assert advantages(rewards, Objective(centre="none")).tolist() == rewards.tolist()


def test_surrogate_weights_are_its_derivative():
    """Central differences in float64, at ratios inside and outside of the clipping range, for both signs."""
    rng = np.random.default_rng(1)
    logprobs, before, start = rng.normal(-2, 0.4, (3, 200))
    advantage = rng.normal(size=200)
    _, weights = surrogate(logprobs, before, start, advantage, CLIPPED)
    step = 1e-6
    up, down = (surrogate(logprobs + x, before, start, advantage, CLIPPED)[0] for x in (step, -step))
    assert np.allclose(weights, -(up - down) / (2 * step), atol=1e-6)
    unclipped = surrogate(logprobs, before, start, advantage, Objective(kl=0.1))[1]
    assert 20 < np.sum(weights != unclipped) < 180


def test_second_update_on_the_same_answers_is_clipped(fakes, config):
    """After a first update that moves the model far, only tokens within the clipping range still have a gradient."""
    groups = [[answer([1, 2], tokens, [1, 1, 1], r) for tokens, r in (([5, 6, 7], 1.0), ([9, 9, 4], 0.0))]]
    rows = PolicyRows(policy_rows(groups, Objective(), prompts=1), 6, 16, is_padded=False)
    gradients = []
    for clip in (None, 1e-9):
        model, optimizer = fakes["model"](config), MovingOptimizer()
        step = TrainStep(model, optimizer, micro_batch_size=4)
        PolicyStep(step, Objective(clip=clip), updates=2).run(rows, rates=RATES)
        assert len(optimizer.norms) == 2
        gradients.append(optimizer.norms)
    assert gradients[0][0] == gradients[1][0] > 0
    assert gradients[0][1] > 10 * gradients[1][1]


class MovingOptimizer:
    """Follows the gradient, which makes every token with an advantage better, and records the gradients' sizes."""

    def __init__(self):
        self.norms, self.arrays = [], []

    def update(self, parameters, gradients, **rates):
        self.norms.append(sum(float(mx.abs(gradient).sum()) for gradient in gradients.values()))
        return {name: value - 1e-3 * gradients[name] for name, value in parameters.items()}


class Fixed:
    """Rows whose passes are given."""

    def __init__(self, passes, valid_tokens=1):
        self.given, self.valid_tokens = passes, valid_tokens

    def passes(self, micro_batch_size):
        return self.given
