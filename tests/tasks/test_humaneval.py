"""HumanEval runs the right program: canonical solutions pass, and empty ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.data.sources import SourceSpec
from nanochat.errors import StageError
from nanochat.tasks.base import gold_text
from nanochat.tasks.build import build_task
from nanochat.tasks.humaneval import Function, HumanEval, assemble_program, extract_code, parse_function
from nanochat.tokenizer.chat_format import render

SAMPLE = SourceSpec(name="sample", path=(str(Path(__file__).parent / "samples" / "humaneval"),))
DOUBLE = Function(
    task_id="T/0",
    prompt="import math\nfrom typing import List\n\n\n"
    'def double(x: List) -> List:\n    """Twice.\n    import x\n    """\n',
    canonical_solution="    return [2 * value for value in x]\n",
    test="def check(candidate):\n    assert candidate([1]) == [2]\n",
    entry_point="double",
)


def test_program_consists_of_imports_code_tests_and_the_call():
    """The imports are those before the prompt's first definition, and the code is the first fenced block."""
    task = HumanEval([DOUBLE])
    completion = "Sure!\n```python\ndef double(x):\n    return x\n```\nor\n```\nno\n```"
    assert assemble_program(task[0], completion) == (
        "import math\nfrom typing import List\n\n"
        "def double(x):\n    return x\n\n\n"
        "def check(candidate):\n    assert candidate([1]) == [2]\n\n\n"
        "check(double)\n"
    )


def test_example_is_rendered_as_by_hand(tokenizer):
    """The prompt is unchanged. The whole fenced answer is trained on."""
    small = Function("T/1", "def f():\n", "    return 1\n", "def check(f): ...", "f")
    rendered = render(tokenizer, HumanEval([small])[0].conversation)
    answer = b"```python\ndef f():\n    return 1\n\n```"
    assert rendered.ids == [256, 257, *b"def f():\n", 258, 259, *answer, 260]
    assert rendered.mask == [0] * 13 + [1] * (len(answer) + 1)


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("text ```py\nx = 1\n``` text ```\ny\n```", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1"),
        ("x = 1<|assistant_end|>y", "x = 1"),
        ("a `b` c", "a `b` c"),
    ],
)
def test_extract_code_takes_the_first_fenced_block_or_the_whole_text(completion, code):
    assert extract_code(completion) == code


def test_grade_accepts_canonical_solutions_only():
    """A body that returns None, an empty answer, and a program that exits before its tests all fail."""
    task = build_task("humaneval", SAMPLE, "test", max_examples=None, seed=0, base=Path())
    assert len(task) == 8
    for example in task:
        assert task.grade(example, gold_text(example))
    for example in list(task)[:3]:
        assert not task.grade(example, example.conversation.messages[0].text() + "    return None\n")
        assert not task.grade(example, "")
        assert not task.grade(
            example, gold_text(example).replace("```python\n", "```python\nimport sys\nsys.exit(0)\n")
        )


def test_parser_refuses_a_row_of_another_form():
    """The message lists what a row must have."""
    with pytest.raises(StageError, match="row 3 must have the texts task_id, prompt"):
        parse_function({"task_id": "x", "prompt": "y"}, 3)
