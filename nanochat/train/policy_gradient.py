"""The policy gradient of reinforcement learning: from the rewards of sampled answers to the weight of each token.

An answer is better or worse than the others to the same prompt; its advantage says by how much. The update makes each
token that the model drew likelier in proportion to the advantage. In other words, its gradient is that of a weighted
cross-entropy, and this module computes the weights. Without clipping and KL penalty they depend on the rewards alone
(Williams 1992, REINFORCE). Otherwise they also depend on the log-probabilities of the current model.

All values are float64. Not here: sampling and grading (`rollouts`), and the passes that compute gradients (`step`).

Shapes: P prompts, S answers to each prompt, T positions of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

_STD_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The quantity that an update maximises."""

    centre: Literal["group", "none"] = "group"
    scale: Literal["none", "std"] = "none"
    clip: float | None = None
    kl: float = 0.0

    @property
    def needs_logprobs(self) -> bool:
        """Whether the weights depend on log-probabilities."""
        return self.clip is not None or self.kl > 0


def advantages(rewards: Doubles, objective: Objective) -> Doubles:
    """Return the advantages (P, S) of answers with these rewards (P, S).

    `centre: group` subtracts the mean reward of the prompt, and `scale: std` divides by the standard deviation
    (Shao et al. 2024, "DeepSeekMath", section 4.1). Answers with equal rewards have advantages of exactly 0.
    """
    if objective.centre == "none" and objective.scale == "none":
        return rewards
    centred = rewards - rewards.mean(axis=1, keepdims=True) if objective.centre == "group" else rewards
    if objective.scale == "std":
        centred = centred / (rewards.std(axis=1, keepdims=True) + _STD_EPS)
    is_equal = rewards.max(axis=1, keepdims=True) == rewards.min(axis=1, keepdims=True)
    return np.where(is_equal & (objective.centre == "group"), 0.0, centred)


def surrogate(
    logprobs: Doubles, before: Doubles, start: Doubles, advantage: Doubles, objective: Objective
) -> tuple[Doubles, Doubles]:
    """Return each token's loss, and minus its derivative with respect to the log-probability: the token's weight.

    The loss is minus the clipped objective of PPO (Schulman et al. 2017, equation 7), plus `kl` times the estimate
    e^d - d - 1 of the KL divergence from the model at the start, d = start - logprobs (Schulman 2020, "Approximating KL
    divergence").

    Args:
        logprobs: of the tokens, by the current model. All arguments broadcast together.
        before: the same by the model that drew the tokens.
        start: the same by the model that training started from.
        advantage: of the answer that the token belongs to.
        objective: `clip` and `kl`.
    """
    ratio = np.exp(logprobs - before)
    gain = ratio * advantage
    weight = gain
    if objective.clip is not None:
        clipped = np.clip(ratio, 1 - objective.clip, 1 + objective.clip) * advantage
        weight = np.where(clipped < gain, 0.0, gain)
        gain = np.minimum(gain, clipped)
    away = start - logprobs
    divergence = kl_estimate(logprobs, start)
    return objective.kl * divergence - gain, weight + objective.kl * np.expm1(away)


def kl_estimate(logprobs: Doubles, start: Doubles) -> Doubles:
    """Return the estimate e^d - d - 1 of each token's KL divergence, d = start - logprobs. It is never negative."""
    return np.expm1(start - logprobs) - (start - logprobs)
