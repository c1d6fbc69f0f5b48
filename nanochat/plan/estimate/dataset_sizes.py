"""Rough sizes of data that the plan has not read: characters of sources, tokens of mixtures and suites.

They serve estimates only. Numbers per task are in `tasks.table`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from nanochat.data.sources.source_spec import SourceSpec, validation_frac
from nanochat.plan.specs.inputs import SftItem
from nanochat.plan.specs.suites import (
    AnyChatSuiteSpec,
    BpbSuiteSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
    LmEvalSuiteSpec,
    PythonSuiteSpec,
    QuestionsSuiteSpec,
)
from nanochat.plan.specs.training import RlItem
from nanochat.tasks.table import TASKS, mixture_counts

ExampleCount = Callable[[SftItem], int | None]
"""Returns how many different examples a task of fine-tuning has, or None if that is unknown."""
TextChars = Callable[[SourceSpec], int | None]
"""Returns about how many characters of training or of held-out text a source has, or None if that is unknown."""
_CONVERSATIONS = {"smol-smoltalk": 460_341}
_CORE_TASKS, _CORE_PROBLEMS_PER_TASK, _CORE_TOKENS_PER_PROBLEM = 22, 4_000, 1_500
_CHOICES = 4
_OWN_PROBLEMS = 200
"""The assumed size of a task of the user's own, before it is read."""
_STDLIB_CHARS = 11_800_000
_STDLIB_FILES = 640


def builtin_chars(source: SourceSpec) -> int | None:
    """Return about how many characters a built-in source has, None for all others (a `TextChars`)."""
    if source.builtin != "python-stdlib":
        return None
    files = min(source.max_files or _STDLIB_FILES, _STDLIB_FILES)
    return _STDLIB_CHARS * files // _STDLIB_FILES


def builtin_held_out_chars(source: SourceSpec) -> int | None:
    """Return about how many characters a built-in source holds out, None for all others (a `TextChars`)."""
    return round(validation_frac(source) * _STDLIB_CHARS) if source.builtin == "python-stdlib" else None


def bytes_per_token(vocab_size: int) -> float:
    """Return about how many bytes of English text a token has: 1.8 with 320 pieces, 3.1 with 2,048, 4.9 with 32,768."""
    return max(1.0, 0.45 * math.log2(vocab_size) - 1.9)


def sft_mixture_tokens(items: Sequence[SftItem]) -> int | None:
    """Return about how many tokens one epoch of a mixture has, or None if that is unknown without reading the data."""
    counts = _mixture_counts(items)
    if counts is None:
        return None
    return sum(count * TASKS[item.task].example_tokens for count, item in zip(counts, items, strict=True))


def practice_questions(items: Sequence[RlItem]) -> int | None:
    """Return about how many questions an epoch of practice has, or None if that is unknown without reading the data."""
    available = [count for item in items if (count := known_questions(item)) is not None]
    if len(available) < len(items):
        return None
    return sum(mixture_counts(available, [item.weight for item in items]))


def known_questions(item: RlItem) -> int | None:
    """Return about how many questions a task of practice has, or None if that is unknown without reading the data."""
    known = TASKS[item.suite.task].train_examples
    count = item.suite.max_problems or known
    is_generated = not isinstance(item.suite, PythonSuiteSpec) and item.suite.source.builtin is not None
    return (count if is_generated or not known else min(count, known)) if count else None


def _mixture_counts(items: Sequence[SftItem]) -> tuple[int, ...] | None:
    known = [count * item.repeat for item in items if (count := known_examples(item)) is not None]
    return mixture_counts(known, [item.weight for item in items]) if len(known) == len(items) else None


def known_examples(item: SftItem) -> int | None:
    """Return how many different examples a task has, as far as that is known without its data (an `ExampleCount`)."""
    count: int | None
    if item.task == "conversations":
        count = next((rows for name, rows in _CONVERSATIONS.items() if name in (item.source.uri or "")), None)
    else:
        count = TASKS[item.task].train_examples
    if item.source.builtin == "spelling":
        count = item.max_examples or count
    elif item.max_examples is not None:
        count = item.max_examples if count is None else min(count, item.max_examples)
    return None if count is None else without_held_out(count, item.validation_frac)


def without_held_out(count: int, frac: float | None) -> int:
    """Return about how many of `count` examples are trained on if a share of them is held out."""
    return count if frac is None else max(1, round(count * (1 - frac)))


def bpb_suite_tokens(suite: BpbSuiteSpec, held_out_chars: Mapping[str, int], vocab_size: int) -> int:
    """Return about how many tokens a suite of bits per byte reads: as many as it may, or all of a smaller text."""
    chars = held_out_chars.get(suite.source.name) if suite.split == "validation" else None
    return suite.tokens if chars is None else min(suite.tokens, round(chars / bytes_per_token(vocab_size)))


def base_suite_tokens(suite: ChoiceSuiteSpec | CoreSuiteSpec | QuestionsSuiteSpec | LmEvalSuiteSpec) -> int:
    """Return about how many tokens a suite reads: each option of each problem, after its few-shot examples."""
    if isinstance(suite, CoreSuiteSpec):
        problems = min(suite.max_problems or _CORE_PROBLEMS_PER_TASK, _CORE_PROBLEMS_PER_TASK)
        return _CORE_TASKS * problems * _CORE_TOKENS_PER_PROBLEM
    facts = TASKS[suite.task]
    known = facts.eval_examples or suite.max_problems or _OWN_PROBLEMS
    problems = min(suite.max_problems or known, known)
    return problems * _CHOICES * facts.example_tokens * (1 + (suite.num_fewshot or 0))


def longest_chat_tokens(suite: AnyChatSuiteSpec) -> int | None:
    """Return about how many tokens the longest prompt and completion have; None if nothing is generated."""
    facts = TASKS[suite.task]
    fewshot = suite.num_fewshot if isinstance(suite, QuestionsSuiteSpec) else 0
    return None if facts.kind == "categorical" else (2 + fewshot) * facts.example_tokens + suite.max_tokens


def chat_suite_tokens(suite: AnyChatSuiteSpec) -> tuple[int, int]:
    """Return about how many tokens (prompts, completions) a suite has. A categorical task generates none."""
    facts = TASKS[suite.task]
    problems = suite.max_problems or facts.eval_examples or _OWN_PROBLEMS
    if facts.eval_examples and not isinstance(suite, PythonSuiteSpec) and suite.source.builtin is None:
        problems = min(problems, facts.eval_examples)
    fewshot = suite.num_fewshot if isinstance(suite, QuestionsSuiteSpec) else 0
    prompts = problems * facts.example_tokens * (1 + fewshot)
    if facts.kind == "categorical":
        return prompts, 0
    return prompts, problems * suite.num_samples * min(suite.max_tokens, facts.example_tokens)
