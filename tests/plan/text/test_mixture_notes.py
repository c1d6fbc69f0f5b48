"""The plan says how many examples of each task a mixture uses, and warns if its weights leave out most of a task."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nanochat.plan.plan import Plan

Compile = Callable[..., Plan]
MINE = "sources.mine={path: mine.jsonl}"


def notes(
    compiled: Compile, chats: str, spelling: str, *, count: int | None = 40, horizon: str = "tokens: 400_000"
) -> list[str]:
    """Return the notes on a mixture of chats of the user, whose number is known or not, and 1,000 spelling examples."""
    plan = compiled(
        MINE,
        f"sft.data={{mine: {{task: conversations, source: mine{chats}}}, spelling: {{{spelling}}}}}",
        f"sft.horizon={{tokens: null, {horizon}}}" if "epochs" in horizon else f"sft.horizon={{{horizon}}}",
        count_examples=lambda item: count if item.name == "mine" else 1000,
        text_chars=lambda source: 12_200 if source.name == "mine" else None,
    )
    return [note for note in plan.notes if "sft" in note]


def test_plan_says_how_many_examples_of_each_task_weights_leave_and_how_to_use_more(compiled: Compile) -> None:
    """40 chats of 12,200 bytes have 4,000 tokens of 3.05 bytes, and 40 words 40 * 32: 5,280 of 401,408 tokens."""
    assert notes(compiled, ", weight: 1", "weight: 1") == [
        "sft reads the conversations of mine about 76 times: the model learns the answers by heart; lower "
        "`sft.horizon` (4 passes are about 21.1K tokens), or add chats",
        "sft: an epoch has 80 conversations: 40 of mine, 40 of the 1,000 of spelling; its horizon is about 76 epochs",
        "warning: the weights of `sft.data` leave only 40 of 1,000 conversations of spelling, because mine has 40; set "
        "`sft.data.mine.repeat: 25` to use more in the same shares, or give no task a weight",
    ]


def test_advice_of_the_warning_uses_all_examples(compiled: Compile) -> None:
    """25 * 40 chats are 1,000, 100 tokens each: an epoch has 132,000 tokens. Three epochs read each chat 76 times."""
    assert notes(compiled, ", weight: 1, repeat: 25", "weight: 1")[1:] == [
        "sft: an epoch has 2,000 conversations: 1,000 of mine, 1,000 of spelling; its horizon is about 3 epochs"
    ]


@pytest.mark.parametrize(
    ("chats", "spelling", "counts"),
    [
        ("", "repeat: 20", "20,040 conversations: 40 of mine, 20,000 of spelling"),
        (", weight: 2", "weight: 5", "140 conversations: 40 of mine, 100 of the 1,000 of spelling"),
    ],
)
def test_plan_does_not_warn_without_weights_or_of_a_tenth(
    compiled: Compile, chats: str, spelling: str, counts: str
) -> None:
    assert notes(compiled, chats, spelling)[-1].startswith(f"sft: an epoch has {counts};")
    assert not any("weights" in note for note in notes(compiled, chats, spelling))


@pytest.mark.parametrize(
    ("repeat", "horizon", "passes"), [(1, "tokens: 144K", None), (25, "tokens: 528K", "100"), (25, "epochs: 4", None)]
)
def test_plan_says_how_often_few_chats_are_read_without_weights(
    compiled: Compile, repeat: int, horizon: str, passes: str | None
) -> None:
    """An epoch of 40 chats, `repeat` times, has 4,000 tokens each time, and one of 1,000 words 32,000: 4 of them."""
    found = [
        note.partition(":")[0]
        for note in notes(compiled, f", repeat: {repeat}", "repeat: 1", horizon=horizon)
        if "reads" in note
    ]
    assert found == ([] if passes is None else [f"sft reads the conversations of mine about {passes} times"])


def test_plan_says_if_the_number_of_examples_is_not_known(compiled: Compile) -> None:
    """So for an export that is converted before the first stage. Half of the tokens have 50 times its 12,200 bytes."""
    assert notes(compiled, ", weight: 1", "weight: 1", count=None) == [
        "how many conversations of each task sft uses is not known before the data is read: mine",
        "sft reads the conversations of mine 50 times or more: the model learns the answers by heart; lower "
        "`sft.horizon` (4 passes are about 32.1K tokens), or add chats",
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
