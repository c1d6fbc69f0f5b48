"""The plan says how many examples of each task a mixture uses, and warns if its weights leave out most of a task."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nanochat.plan.plan import Plan

Compile = Callable[..., Plan]
MINE = "sources.mine={path: mine.jsonl}"


def notes(compiled: Compile, chats: str, spelling: str, *, count: int | None = 40, chars: int = 12_200) -> list[str]:
    """Return the notes on a mixture of chats of the user, whose number is known or not, and 1,000 spelling examples."""
    plan = compiled(
        MINE,
        f"sft.data={{mine: {{task: conversations, source: mine{chats}}}, spelling: {{{spelling}}}}}",
        count_examples=lambda item: count if item.name == "mine" else 1000,
        text_chars=lambda source: chars if source.name == "mine" else None,
    )
    return [note for note in plan.notes if "epoch" in note or "weights of" in note or "conversations of each" in note]


def test_plan_says_how_many_examples_of_each_task_weights_leave_and_how_to_use_more(compiled: Compile) -> None:
    """40 chats of 12,200 bytes have 4,000 tokens of 3.05 bytes, and 40 words 40 * 32: 5,280 of 401,408 tokens."""
    assert notes(compiled, ", weight: 1", "weight: 1") == [
        "sft: an epoch has 80 conversations: 40 of mine, 40 of the 1,000 of spelling; its horizon is about 76 epochs",
        "warning: the weights of `sft.data` leave only 40 of 1,000 conversations of spelling, because mine has 40; set "
        "`sft.data.mine.repeat: 25` to use more in the same shares, or give no task a weight",
    ]


def test_advice_of_the_warning_uses_all_examples(compiled: Compile) -> None:
    """25 * 40 chats are 1,000, 100 tokens each: an epoch has 132,000 tokens."""
    assert notes(compiled, ", weight: 1, repeat: 25", "weight: 1") == [
        "sft: an epoch has 2,000 conversations: 1,000 of mine, 1,000 of spelling; its horizon is about 3 epochs"
    ]


@pytest.mark.parametrize(
    ("chats", "spelling", "counts"),
    [
        ("", "", "1,040 conversations: 40 of mine, 1,000 of spelling"),
        (", weight: 2", "weight: 5", "140 conversations: 40 of mine, 100 of the 1,000 of spelling"),
    ],
)
def test_plan_does_not_warn_without_weights_or_of_a_tenth(
    compiled: Compile, chats: str, spelling: str, counts: str
) -> None:
    (note,) = notes(compiled, chats, spelling)
    assert note.startswith(f"sft: an epoch has {counts};")


def test_plan_says_if_the_number_of_examples_is_not_known(compiled: Compile) -> None:
    """So for a chat export that is converted before the first stage."""
    assert notes(compiled, ", weight: 1", "weight: 1", count=None) == [
        "how many conversations of each task sft uses is not known before the data is read: mine"
    ]


def test_plan_warns_if_weights_leave_out_most_questions_of_rl(compiled: Compile) -> None:
    """5 questions with the weight of 1,000 others limit the mixture to 10."""
    task = "{{task: simple_spelling, source: words, max_problems: {}, weight: 1}}"
    held_out = "{spelling: {task: simple_spelling, source: words, max_problems: 5}}"
    data = f"{{few: {task.format(5)}, many: {task.format(1000)}}}"
    plan = compiled(f"rl={{data: {data}, horizon: {{steps: 2}}, max_tokens: 16, held_out: {held_out}}}")
    assert [note for note in plan.notes if "weights of" in note] == [
        "warning: the weights of `rl.data` leave only 5 of 1,000 questions of many, because few has 5; add to few, or "
        "give no task a weight"
    ]
