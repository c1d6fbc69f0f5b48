"""MMLU and ARC in chat form have one line per option, with the letters of the data."""

from __future__ import annotations

import pytest

from nanochat.errors import StageError
from nanochat.tasks.multiple_choice.chat_models import MultipleChoice, parse_arc, parse_mmlu
from nanochat.tokenizer.chat_format import render

MMLU_ROW = {"question": "1+1?", "subject": "arithmetic", "choices": ["1", "2"], "answer": 1}
ARC_ROW = {
    "id": "x",
    "question": "Which is hot?",
    "choices": {"text": ["ice", "fire", "snow"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}


def test_mmlu_example_is_rendered_as_by_hand(tokenizer):
    """Only the letter and the end mark are trained on."""
    task = MultipleChoice("mmlu", [parse_mmlu(MMLU_ROW)])
    rendered = render(tokenizer, task[0].conversation)
    head = [256, 257, *b"Multiple choice question: 1+1?", 10, *b"- 1=A", 10, *b"- 2=B", 10, 10]
    assert rendered.ids == [*head, *b"Answer with the letter only.", 258, 259, 66, 260]
    assert rendered.mask == [0] * (len(rendered.ids) - 2) + [1, 1]
    assert task[0].letters == ("A", "B")


def test_arc_example_is_rendered_as_by_hand(tokenizer):
    """The digits of the data are the letters, in the prompt and in the answer."""
    task = MultipleChoice("arc_easy", [parse_arc(ARC_ROW)])
    rendered = render(tokenizer, task[0].conversation)
    head = [256, 257, *b"Multiple choice question: Which is hot?", 10]
    options = [*b"- ice=1", 10, *b"- fire=2", 10, *b"- snow=3", 10, 10]
    assert rendered.ids == [*head, *options, *b"Answer with the letter only.", 258, 259, 50, 260]
    assert rendered.mask == [0] * (2 + 39 + 1 + 27 + 28 + 2) + [1, 1]
    assert task[0].letters == ("1", "2", "3")


def test_grade_accepts_only_the_bare_letter():
    """Special tokens and white space around it are removed, nothing else."""
    task = MultipleChoice("mmlu", [parse_mmlu(MMLU_ROW)])
    assert task.grade(task[0], "B")
    assert task.grade(task[0], " B<|assistant_end|>")
    for wrong in ("", "A", "b", "B.", "2", "A B", "The answer is B"):
        assert not task.grade(task[0], wrong)


def test_mmlu_rows_of_auxiliary_train_are_unwrapped():
    """On the hub, each of these rows is in a column `train`."""
    assert parse_mmlu({"train": MMLU_ROW}) == parse_mmlu(MMLU_ROW)


@pytest.mark.parametrize(
    ("parse", "row"),
    [
        (parse_mmlu, MMLU_ROW | {"answer": 2}),
        (parse_mmlu, MMLU_ROW | {"answer": -1}),
        (parse_mmlu, {"question": "q"}),
        (parse_arc, ARC_ROW | {"answerKey": "B"}),
        (parse_arc, ARC_ROW | {"choices": ["a"]}),
        (parse_arc, ARC_ROW | {"choices": {"text": ["a"], "label": ["1", "2"]}}),
    ],
)
def test_parsers_refuse_rows_of_another_form(parse, row):
    """A gold answer outside of the options is never guessed."""
    with pytest.raises(StageError, match="a row must have"):
        parse(row)
