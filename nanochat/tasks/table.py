"""The table of tasks: what each one asks, how a model answers it, how large it is, and what a mixture takes of it.

Recipes, plans, evaluations and reports read their facts about tasks here. To add a task, add its name to the literals
and a row to `TASKS`; `nanochat.tasks.build` and `nanochat.tasks.multiple_choice.base_models` say how its rows become
examples. Not here: anything that takes time to import, because checking a recipe reads this table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LetterTask = Literal["mmlu", "arc_easy", "arc_challenge"]
"""Questions with lettered options."""
WordTask = Literal["spelling_bee", "simple_spelling"]
"""Tasks whose examples are generated from a list of words."""
RowTask = Literal["gsm8k", LetterTask, "humaneval"]
"""Tasks of which each row of a file is one example."""
ChoiceTask = Literal["hellaswag", LetterTask]
"""Tasks of base_eval that compare the log-probabilities of options."""
ChatTask = Literal["gsm8k", LetterTask, "humaneval", WordTask]
"""Tasks of chat_eval."""
SftTask = Literal["conversations", "gsm8k", LetterTask, WordTask]
"""Tasks that the SFT mixture may contain."""
ExampleTask = Literal["conversations", RowTask, WordTask]
"""Tasks whose examples are conversations: what `build_task` can build."""
TaskName = Literal["bpb", "core", "hellaswag", ExampleTask, "questions", "python", "lm_eval"]

TextRule = Literal["exact", "number", "contains", "regex", "letter"]
"""How an answer to one of the user's `questions` is graded as text."""
GradeRule = Literal[TextRule, "program"]
"""The same, or a function that the user wrote grades it."""

Kind = Literal["bpb", "core", "choices", "categorical", "generative"]
"""How a model is evaluated. `bpb` and `core` are bits per byte and the CORE bundle. `choices` asks for the likeliest of
several continuations, `categorical` for the likeliest letter. `generative` grades the text that the model generates."""


@dataclass(frozen=True)
class TaskFacts:
    """The facts about one task. Sizes are used for estimates only."""

    kind: Kind
    reads: Literal["documents", "bundle", "rows", "words", "nothing"]
    """The content that its source must have."""
    asks: str
    """The request to the model in a few words, for readers of a report."""
    chance: float = 0.0
    """Expected accuracy of a guess. A few ARC problems have 3 or 5 options; the composite scores assume 4."""
    train_examples: int = 0
    """Rows of the public training split; 0 if there is none, or if the source decides."""
    eval_examples: int = 0
    """Rows of the public evaluation split; 0 if the source decides."""
    example_tokens: int = 0
    """Tokens of one example with a vocabulary of 32,768, roughly; 0 if the source decides."""
    eval_split: str = "test"
    """The split that is usually reported."""
    fewshot_split: str = "train"
    """The split that solved examples come from."""
    runs_programs: bool = False
    """Whether grading runs programs that the model wrote."""


# fmt: off
TASKS: Mapping[str, TaskFacts] = {
    "bpb": TaskFacts(
        "bpb", "documents", "bits to encode a byte of held-out text; lower is better, 8 is knowing nothing",
    ),
    "core": TaskFacts("core", "bundle", "the DCLM benchmark's tasks: 0 is guessing, 1 is all right"),
    "hellaswag": TaskFacts(
        "choices", "rows", "pick which of four endings continues a text",
        chance=0.25, eval_examples=10_042, example_tokens=100, eval_split="validation",
    ),
    "mmlu": TaskFacts(
        "categorical", "rows", "exam questions on 57 subjects, four answers each",
        chance=0.25, train_examples=99_842, eval_examples=14_042, example_tokens=150, fewshot_split="dev",
    ),
    "arc_easy": TaskFacts(
        "categorical", "rows", "easy school science, about four answers each",
        chance=0.25, train_examples=2_251, eval_examples=2_376, example_tokens=100,
    ),
    "arc_challenge": TaskFacts(
        "categorical", "rows", "hard school science, about four answers each",
        chance=0.25, train_examples=1_119, eval_examples=1_172, example_tokens=100,
    ),
    "conversations": TaskFacts("generative", "rows", "answer a message as the reference does", example_tokens=800),
    "gsm8k": TaskFacts(
        "generative", "rows", "school word problems; the number must be right",
        train_examples=7_473, eval_examples=1_319, example_tokens=250,
    ),
    "humaneval": TaskFacts(
        "generative", "rows", "write a Python function that passes its tests",
        eval_examples=164, example_tokens=200, runs_programs=True,
    ),
    "spelling_bee": TaskFacts(
        "generative", "words", "count a letter in a word and check it with Python",
        train_examples=10_000, eval_examples=256, example_tokens=150,
    ),
    "simple_spelling": TaskFacts(
        "generative", "words", "spell a word letter by letter",
        train_examples=10_000, eval_examples=256, example_tokens=32,
    ),
    "questions": TaskFacts("generative", "rows", "answer your own questions", example_tokens=100),
    "lm_eval": TaskFacts("choices", "nothing", "a task of lm-evaluation-harness", example_tokens=100),
    "python": TaskFacts(
        "generative", "nothing", "what your own class asks", example_tokens=100, runs_programs=True,
    ),
}
# fmt: on


def mixture_counts(available: Sequence[int], weights: Sequence[float | None]) -> tuple[int, ...]:
    """Return how many examples of each task are in a mixture.

    Without weights, these are all the `available` examples. With weights, the shares of the mixture are proportional to
    them, and the mixture is as large as `available` allows: the task that is scarcest for its share gives all its
    examples, and every other task gives at least one.
    """
    assert len(available) == len(weights), "one weight per task"
    given = [weight for weight in weights if weight is not None]
    if not given:
        return tuple(available)
    assert len(given) == len(weights), "either all tasks have a weight or none has one"
    total = min(count / weight for count, weight in zip(available, given, strict=True))
    return tuple(min(count, max(1, round(total * weight))) for count, weight in zip(available, given, strict=True))
