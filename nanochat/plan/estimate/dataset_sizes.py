"""How many examples tasks have and how long they are, roughly: for estimates only, nothing is computed from them.

Counts are those of the public sets; tokens per example are round numbers for a vocabulary of 32,768.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.data.sources import SourceSpec
from nanochat.plan.specs import ChatSuiteSpec, ChoiceSuiteSpec, CoreSuiteSpec, SftItem
from nanochat.tasks.shares import mixture_counts

_TRAIN_EXAMPLES = {"gsm8k": 7_473, "mmlu": 99_842, "arc_easy": 2_251, "arc_challenge": 1_119, "spelling": 10_000}
_EVAL_EXAMPLES = {
    "gsm8k": 1_319,
    "mmlu": 14_042,
    "arc_easy": 2_376,
    "arc_challenge": 1_172,
    "humaneval": 164,
    "hellaswag": 10_042,
    "spelling_bee": 256,
    "simple_spelling": 256,
}
_EXAMPLE_TOKENS = {
    "conversations": 800,
    "gsm8k": 250,
    "mmlu": 150,
    "arc_easy": 100,
    "arc_challenge": 100,
    "humaneval": 200,
    "hellaswag": 100,
    "spelling_bee": 150,
    "simple_spelling": 40,
}
_CONVERSATIONS = {"smol-smoltalk": 460_341}
_CORE_TASKS, _CORE_PROBLEMS_PER_TASK, _CORE_TOKENS_PER_PROBLEM = 22, 4_000, 1_500
_CHOICES = 4
_LETTER_TASKS = ("mmlu", "arc_easy", "arc_challenge")
_STDLIB_CHARS = 11_800_000
_STDLIB_FILES = 640


def source_chars(source: SourceSpec) -> int | None:
    """Return about how many characters a source has, or None where only reading it would tell."""
    if source.builtin != "python-stdlib":
        return None
    files = min(source.max_files or _STDLIB_FILES, _STDLIB_FILES)
    return _STDLIB_CHARS * files // _STDLIB_FILES


def sft_mixture_tokens(items: Sequence[SftItem]) -> int | None:
    """Return about how many tokens one epoch of a mixture has, or None where only the data would tell."""
    available = [_sft_item_examples(item) for item in items]
    known = [count for count in available if count is not None]
    if len(known) < len(items):
        return None
    counts = mixture_counts(known, [item.weight for item in items])
    return sum(count * _EXAMPLE_TOKENS[item.task] for count, item in zip(counts, items, strict=True))


def _sft_item_examples(item: SftItem) -> int | None:
    count: int | None
    if item.task == "conversations":
        count = next((rows for name, rows in _CONVERSATIONS.items() if name in (item.source.uri or "")), None)
    else:
        count = _TRAIN_EXAMPLES.get(item.task, _TRAIN_EXAMPLES["spelling"])
    generated = item.source.builtin == "spelling"
    if item.max_examples is not None:
        count = item.max_examples if generated or count is None else min(count, item.max_examples)
    return None if count is None else count * item.repeat


def base_suite_tokens(suite: ChoiceSuiteSpec | CoreSuiteSpec) -> int:
    """Return about how many tokens a suite reads: each option of each problem, behind its few-shot examples."""
    if isinstance(suite, CoreSuiteSpec):
        return (
            _CORE_TASKS
            * min(suite.max_problems or _CORE_PROBLEMS_PER_TASK, _CORE_PROBLEMS_PER_TASK)
            * (_CORE_TOKENS_PER_PROBLEM)
        )
    problems = min(suite.max_problems or _EVAL_EXAMPLES[suite.task], _EVAL_EXAMPLES[suite.task])
    return problems * _CHOICES * _EXAMPLE_TOKENS[suite.task] * (1 + suite.num_fewshot)


def longest_chat_tokens(suite: ChatSuiteSpec) -> int | None:
    """Return about how many tokens the longest prompt and completion have; None where nothing is generated."""
    return None if suite.task in _LETTER_TASKS else 2 * _EXAMPLE_TOKENS[suite.task] + suite.max_tokens


def chat_suite_tokens(suite: ChatSuiteSpec) -> tuple[int, int]:
    """Return about how many tokens (prompts, completions) a suite has; letters are compared without generating."""
    known = _EVAL_EXAMPLES[suite.task]
    problems = suite.max_problems or known
    if suite.source.builtin is None:
        problems = min(problems, known)
    prompts = problems * _EXAMPLE_TOKENS[suite.task]
    if suite.task in _LETTER_TASKS:
        return prompts, 0
    return prompts, problems * suite.num_samples * min(suite.max_tokens, _EXAMPLE_TOKENS[suite.task])
