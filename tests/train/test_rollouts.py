"""Sampling and rewarding answers, and learning from them: the same answers for the same keys, and a bandit."""

from __future__ import annotations

import re
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from nanochat.errors import StageError
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.model.config import GPTConfig
from nanochat.optim.groups import OptimizerConfig, build_groups
from nanochat.optim.optimizer import Optimizer
from nanochat.tasks.task import Example, single_turn
from nanochat.tokenizer import bpe
from nanochat.train.policy_gradient import Objective
from nanochat.train.policy_step import PolicyRows, PolicyStep, policy_rows
from nanochat.train.rollouts import Prompt, Reward, Rollouts
from nanochat.train.step import Rates, TrainStep

EXAMPLE = Example(single_turn("?", "a"))


@dataclass(frozen=True)
class OneWord:
    """A task whose only right answer is a text. `grades` takes the place of its grades by text."""

    right: str = "a"
    grades: tuple[tuple[str, float], ...] = ()
    name: str = "one_word"

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return EXAMPLE

    def grade(self, example, completion):
        return dict(self.grades).get(completion, completion == self.right)


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["abc abd"], vocab_size=300, max_chars=1000, max_document_chars=1000)


@pytest.fixture
def engine(fakes, tokenizer):
    shape = {"n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 32, "window_pattern": "SL"}
    return Engine(fakes["model"](GPTConfig(sequence_len=16, vocab_size=tokenizer.vocab_size, **shape)), tokenizer)


def make_rollouts(samples=4, max_tokens=5, **reward):
    sampling = Sampling(temperature=1.0, top_k=None)
    return Rollouts(samples=samples, max_tokens=max_tokens, sampling=sampling, reward=Reward(**reward))


def prompts_of(task, count):
    return [Prompt(task, EXAMPLE, [1, 40 + number], f"question {number}") for number in range(count)]


def test_rollouts_depend_on_seed_and_numbers_alone(engine):
    """Neither the other prompts of a process nor the size of its batches change an answer."""
    rollouts, prompts = make_rollouts(), prompts_of(OneWord(), 4)
    whole = rollouts.sample(engine, prompts, seed=7, numbers=range(4), max_rows=16)
    odd = rollouts.sample(engine, prompts[1::2], seed=7, numbers=range(1, 4, 2), max_rows=3)
    assert [[a.tokens for a in group] for group in odd] == [[a.tokens for a in group] for group in whole[1::2]]
    other = rollouts.sample(engine, prompts, seed=8, numbers=range(4), max_rows=16)
    assert [[a.tokens for a in group] for group in other] != [[a.tokens for a in group] for group in whole]
    assert len({tuple(a.tokens) for group in whole for a in group}) == 16


def test_reward_adds_terms_for_length_and_form():
    reward = Reward(length=0.4, form=re.compile("#### [0-9]"), form_reward=0.25)
    assert reward.of(1.0, "so #### 7", tokens_frac=0.5) == pytest.approx(1 - 0.2 + 0.25)
    assert reward.of(0.0, "so 7", tokens_frac=1.0) == pytest.approx(-0.4)
    assert Reward().of(1.0, "", tokens_frac=1.0) == 1.0


def test_reward_that_is_not_finite_is_refused_with_its_place(engine):
    rollouts, prompts = make_rollouts(), prompts_of(OneWord(), 2)
    wrong = rollouts.sample(engine, prompts, seed=7, numbers=range(2), max_rows=8)[1][2].text
    broken = [prompts[0], Prompt(OneWord(grades=((wrong, float("nan")),)), EXAMPLE, prompts[1].ids, "step 3, prompt 2")]
    with pytest.raises(StageError, match=r"step 3, prompt 2: one_word grades the answer .* with nan") as caught:
        rollouts.sample(engine, broken, seed=7, numbers=range(2), max_rows=8)
    assert caught.value.exit_code == 4


def test_bandit_learns_the_one_right_token(engine, tokenizer):
    """300 tokens of which one is rewarded: its probability rises from under 0.1 to 0.99."""
    model, prompt = engine.model, prompts_of(OneWord(), 1)
    groups = build_groups(model.config, OptimizerConfig(lr_scale=0.6), tokens_per_step=2**13)
    optimizer = Optimizer(groups, model.named_parameters())
    step = PolicyStep(TrainStep(model, optimizer, micro_batch_size=64), Objective())

    def probability():
        logits = model(mx.array([prompt[0].ids]))[0, -1, : tokenizer.vocab_size]
        return float(mx.softmax(logits)[tokenizer.encode("a")[0]])

    assert probability() < 0.1
    rollouts, rewards = make_rollouts(samples=128, max_tokens=1), []
    for number in range(60):
        answers = rollouts.sample(engine, prompt, seed=number, numbers=[0], max_rows=128)
        rewards.append(np.mean([answer.reward for answer in answers[0]]))
        rows = PolicyRows(policy_rows(answers, Objective(), prompts=1), 128, 16, is_padded=False)
        step.run(rows, rates=Rates(1.0, 0.9, 0.0))
    assert probability() > 0.99, rewards
