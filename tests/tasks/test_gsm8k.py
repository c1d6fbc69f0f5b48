"""GSM8K renders calls as the engine would make them, and compares answers as numbers."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import StageError
from nanochat.tasks.build import build_task
from nanochat.tasks.generative.gsm8k import GSM8K, WordProblem, parse_word_problem, split_calls
from nanochat.tasks.parsing import parse_final_number
from nanochat.tasks.task import gold_text
from nanochat.tokenizer.chat_format import Part, render
from nanochat.tools.calculator import calculate, format_result

SAMPLE = SourceSpec(name="sample", path=(str(Path(__file__).parent / "samples" / "gsm8k"),))
SMALL = WordProblem("2+2?", "It is <<2+2=4.0>>4.\n#### 4")


def test_worked_answer_is_rendered_as_by_hand(tokenizer):
    """The output is written as the engine writes it, and is not trained on."""
    rendered = render(tokenizer, GSM8K([SMALL])[0].conversation)
    # bos 256, user 257-258, assistant 259-260, python 261-262, output 263-264
    before = [256, 257, 50, 43, 50, 63, 258, 259]
    said = [73, 116, 32, 105, 115, 32]
    call, output = [261, 50, 43, 50, 262], [263, 52, 264]
    after = [52, 46, 10, 35, 35, 35, 35, 32, 52, 260]
    assert rendered.ids == [*before, *said, *call, *output, *after]
    assert rendered.mask == [0] * 8 + [1] * 6 + [1] * 5 + [0] * 3 + [1] * 10


def test_split_calls_turns_every_call_into_python_and_its_output():
    """One of the two calls is at the very beginning."""
    assert split_calls("<<10/4=2.5>>2.5 each, 2*2.5=<<2*2.5=5.00>>$5\n#### 5") == (
        Part("python", "10/4"),
        Part("python_output", "2.5"),
        Part("text", "2.5 each, 2*2.5="),
        Part("python", "2*2.5"),
        Part("python_output", "5"),
        Part("text", "$5\n#### 5"),
    )


def test_split_calls_leaves_out_a_call_that_the_engine_would_not_answer():
    """The engine injects nothing for it, so there is nothing to learn."""
    assert split_calls("so <<x+1=3>>3 and << =4>>4 <<no>> #### 4") == (Part("text", "so 3 and 4 <<no>> #### 4"),)


def test_calculator_gives_every_result_of_the_sample_as_the_data_does():
    task = build_task("gsm8k", SAMPLE, "train", max_examples=None, seed=0, base=Path())
    assert len(task) == 60
    calls = 0
    for example in task:
        parts = example.conversation.messages[1].content
        annotated = re.findall(r"<<([^<>]*)=([^<>=]*)>>", example.meta["answer"])
        outputs = [part.text for part in parts if part.kind == "python_output"]
        assert outputs == [format_result(result) for _, result in annotated]
        assert outputs == [calculate(expression) for expression, _ in annotated]
        calls += len(outputs)
    assert calls > 120


RIGHT = [
    "#### 10", "so\n\n#### 10.", "####10", "#### $10", "#### 10.0", "#### 10.00 dollars", "#### 10<|assistant_end|>",
    "#### 10\n#### 11", "#### 10%",
]  # fmt: skip
NEAR_MISSES = [
    "", "10", "the answer is 10", "####", "#### ten", "#### 100", "#### 1", "#### 10/3", "#### -10", "#### 10x",
    "#### 10.5", "#### 1,0.5", "### 10", "#### \n10", "#### 11\n#### 10", "<|assistant_end|>#### 10", "#### 10.5.3",
]  # fmt: skip


@pytest.mark.parametrize("completion", RIGHT + NEAR_MISSES)
def test_grade_accepts_the_right_number_in_several_notations(completion):
    """Neither another number nor the right number elsewhere counts."""
    task = GSM8K([WordProblem("q", "a\n#### 10")])
    assert task.grade(task[0], completion) == (completion in RIGHT)


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,234,567", "1234567"), ("#### -$5.50", "-5.5"), ("#### $-5.5", "-5.5"), ("#### .5", "0.5")],
)
def test_final_number_is_parsed_without_commas_and_dollar_signs(text, number):
    assert parse_final_number(text) == Decimal(number)


def test_grade_accepts_the_gold_answers_of_the_sample():
    task = build_task("gsm8k", SAMPLE, "train", max_examples=None, seed=0, base=Path())
    for example in task:
        assert task.grade(example, gold_text(example))
        assert not task.grade(example, gold_text(example).replace("####", ""))


@pytest.mark.parametrize(
    "row", [{"question": "q"}, {"question": "q", "answer": "no number"}, {"question": 1, "answer": "#### 1"}]
)
def test_parser_refuses_a_row_of_another_form(row):
    """The message gives the number of the row and what it must have."""
    with pytest.raises(StageError, match="a row must have `question` and `answer` with a number after `####`"):
        parse_word_problem(row)
