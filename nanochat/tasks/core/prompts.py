"""Renders the prompts of CORE's three task types, after solved examples (Li et al. 2024, "DataComp-LM").

Not here: which tokens of a prompt are scored, and how (`nanochat.evals.core_tasks`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CoreKind = Literal["multiple_choice", "schema", "language_modeling"]

_FEWSHOT_SEED = 1234


@dataclass(frozen=True)
class CoreItem:
    """Pairs of a context and its continuation, and the index of the right pair.

    The pairs differ in the continuation (`multiple_choice`) or in the context (`schema`). `language_modeling` has one.
    """

    kind: CoreKind
    pairs: tuple[tuple[str, str], ...]
    gold: int = 0


def fewshot_indices(index: int, total: int, count: int) -> list[int]:
    """Return the numbers of the `count` other items that precede item `index` as solved examples, in order."""
    others = [other for other in range(total) if other != index]
    return random.Random(_FEWSHOT_SEED + index).sample(others, count)


def solved_examples(fewshot: Sequence[CoreItem], *, delimiter: str) -> list[str]:
    """Return the solved examples as the texts that begin a prompt."""
    return [f"{delimiter.join(shot.pairs[shot.gold])}\n\n" for shot in fewshot]


def render_prompts(item: CoreItem, fewshot: Sequence[CoreItem], *, delimiter: str) -> tuple[str, ...]:
    """Return the prompts of an item: one for each pair, or for `language_modeling` without and with the continuation.

    The prompt without continuation is stripped on both sides. Nothing else is trimmed or escaped.
    """
    before = "".join(solved_examples(fewshot, delimiter=delimiter))
    prompts = tuple(before + delimiter.join(pair) for pair in item.pairs)
    if item.kind == "language_modeling":
        return f"{before}{item.pairs[0][0]}{delimiter}".strip(), *prompts
    return prompts
