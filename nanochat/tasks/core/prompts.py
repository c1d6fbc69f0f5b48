"""Renders the prompts of CORE's three task types, after solved examples (Li et al. 2024, "DataComp-LM").

Not here: which tokens of a prompt are scored, and how (`nanochat.evals.core_tasks`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

CoreKind = Literal["multiple_choice", "schema", "language_modeling"]

_FEWSHOT_SEED = 1234


@dataclass(frozen=True)
class MultipleChoiceItem:
    """A query and the choices that may follow it."""

    query: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class SchemaItem:
    """Contexts that may precede one continuation."""

    context_options: tuple[str, ...]
    continuation: str
    gold: int


@dataclass(frozen=True)
class LanguageModelingItem:
    """A context and the text that must follow it."""

    context: str
    continuation: str

    @property
    def gold(self) -> int:
        """The index of the only continuation."""
        return 0


CoreItem = MultipleChoiceItem | SchemaItem | LanguageModelingItem


def fewshot_indices(index: int, total: int, count: int) -> list[int]:
    """Return the numbers of the `count` other items that precede item `index` as solved examples, in order."""
    others = [other for other in range(total) if other != index]
    return random.Random(_FEWSHOT_SEED + index).sample(others, count)


def render_prompts(item: CoreItem, fewshot: Sequence[CoreItem], *, delimiter: str) -> tuple[str, ...]:
    """Return the prompts of an item: one for each option, or one without and one with the continuation.

    Contexts of `language_modeling` are stripped on both sides, and so is its whole prompt without continuation. Nothing
    else is trimmed or escaped.
    """
    before = "".join(f"{_solved(shot, delimiter)}\n\n" for shot in fewshot)
    match item:
        case MultipleChoiceItem():
            return tuple(f"{before}{item.query}{delimiter}{choice}" for choice in item.choices)
        case SchemaItem():
            return tuple(f"{before}{context}{delimiter}{item.continuation}" for context in item.context_options)
        case LanguageModelingItem():
            context = f"{before}{item.context.strip()}{delimiter}"
            return context.strip(), context + item.continuation
        case _:
            assert_never(item)


def _solved(item: CoreItem, delimiter: str) -> str:
    match item:
        case MultipleChoiceItem():
            return f"{item.query}{delimiter}{item.choices[item.gold]}"
        case SchemaItem():
            return f"{item.context_options[item.gold]}{delimiter}{item.continuation}"
        case LanguageModelingItem():
            return f"{item.context.strip()}{delimiter}{item.continuation}"
        case _:
            assert_never(item)
