"""HumanEval runs the right program: canonical solutions pass, and empty ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import StageError
from nanochat.tasks.build import build_task
from nanochat.tasks.generative.humaneval import Function, HumanEval, assemble_program, extract_code, parse_function
from nanochat.tasks.task import gold_text
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


def test_program_consists_of_imports_and_code():
    """The imports are those before the prompt's first definition, and the code is the first fenced block.

    Imports from `__future__` lead. The tests are not part of the program, which could look for them.
    """
    task = HumanEval([DOUBLE])
    code = "from __future__ import annotations\ndef double(x):\n    return x\n"
    assert assemble_program(task[0], f"Sure!\n```python\n{code}```\nor\n```\nno\n```") == (
        "from __future__ import annotations\nimport math\nfrom typing import List\n\ndef double(x):\n    return x\n"
    )


def test_example_is_rendered_as_by_hand(tokenizer):
    """The prompt is unchanged. The whole fenced answer is trained on."""
    small = Function("T/1", "def f():\n", "    return 1\n", "def check(f): ...", "f")
    rendered = render(tokenizer, HumanEval([small])[0].conversation)
    answer = b"```python\ndef f():\n    return 1\n\n```"
    assert rendered.ids == [256, 257, *b"def f():\n", 258, 259, *answer, 260]
    assert rendered.mask == [0] * 13 + [1] * (len(answer) + 1)


DOCUMENTED = "def f():\n    '''\n    ```\n    f()\n    ```\n    '''"


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("text ```py\nx = 1\n``` text ```\ny\n```", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1"),
        ("x = 1<|assistant_end|>y", "x = 1"),
        ("a `b` c", "a `b` c"),
        # Only the closing fence is there.
        ("x = 1\n```", "x = 1\n"),
        ("x = 1```", "x = 1"),
        ("def f(): 1\n```\nIt returns None.", "def f(): 1\n"),
        ("def f(): 1\n```\nUse it:\n```python\nf()\n```", "def f(): 1\n"),
        # Only the opening fence is there.
        ("So:\n```\ndef f(): 1", "def f(): 1"),
        ("So:\r\n```python\r\nx = 1\r\n```", "x = 1\r\n"),
        # The code mentions fences.
        ('x = "```"\ny = 1', 'x = "```"\ny = 1'),
        ('if x.startswith("```"):\n    y', 'if x.startswith("```"):\n    y'),
        (DOCUMENTED, DOCUMENTED),
        (f"```py\n{DOCUMENTED}\n    1\n```\nSo.", f"{DOCUMENTED}\n    1\n"),
        (f"```py\n{DOCUMENTED}", DOCUMENTED),
        # The fences are indented, or in a line of code.
        ("1. So:\n   ```python\n   def f():\n       1\n   ```\n2. No", "def f():\n    1\n"),
        ("```python\ndef f():\n    1\n    ```\nSo.", "def f():\n    1\n"),
        ("```python\nx = 1```\nSo.", "x = 1"),
        ("```python\n  x = 1\ny = 2\n```", "x = 1\ny = 2\n"),
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


GUARDED = {
    "exit": "import sys\n    sys.exit(main())",
    "input": "print(double([int(input())]))",
    "doctest": "import doctest\n    doctest.testmod()",
    "unittest": "import unittest\n    unittest.main()",
}


@pytest.mark.parametrize("guarded", GUARDED.values(), ids=GUARDED)
def test_grade_ignores_what_an_answer_does_as_a_script(guarded):
    """The function is judged by its tests, whether it is right or wrong."""
    task = HumanEval([DOUBLE])
    for body, is_right in (("[2 * value for value in x]", True), ("x", False)):
        code = f"def double(x):\n    return {body}\n\nif __name__ == '__main__':\n    {guarded}\n"
        assert task.grade(task[0], f"```python\n{code}```") == is_right


def test_grade_accepts_programs_that_python_accepts():
    """Imports from `__future__`, classes whose annotations are looked up by module, and much output are no fault."""
    code = (
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Twice:\n    value: dataclasses.InitVar[int]\n    other: Twice | None = None\n"
        "def double(x):\n    for _ in range(30_000): print('working', Twice(1))\n    return [2 * y for y in x]\n"
    )
    task = HumanEval([DOUBLE])
    assert task.grade(task[0], code)
    assert not task.grade(task[0], code.replace("2 *", "3 *"))


ENCODE = Function(
    task_id="T/2",
    prompt='def encode(s: str) -> str:\n    return s[::-1]\n\n\ndef decode(s: str) -> str:\n    """Undo."""\n',
    canonical_solution="    return s[::-1]\n",
    test="def check(candidate):\n    assert candidate(encode('ab')) == 'ab' == decode('ba')\n",
    entry_point="decode",
)


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("def decode(s): return s[::-1]", True),
        ("def encode(s): return s\ndef decode(s): return s", False),
        ("def decode(s): return s", False),
        ("def decode(s): return encode(s)", False),
    ],
)
def test_grade_takes_functions_of_the_tests_from_the_prompt(answer, is_right):
    """An answer need not repeat them, cannot replace them, and cannot use what it has not written."""
    task = HumanEval([ENCODE])
    assert task.grade(task[0], answer) == is_right


def test_grade_keeps_tests_and_solution_from_the_program():
    """The program's memory holds neither, so that it cannot look up what is expected."""
    code = (
        "import gc\ndef double(x):\n"
        " texts = [text for text in gc.get_objects() if isinstance(text, str)]\n"
        " frame = __import__('sys')._getframe()\n"
        " while frame: texts += map(str, [*frame.f_locals.values(), *frame.f_globals.values()]); frame = frame.f_back\n"
        " assert not any('check(' + 'candidate)' in text or 'for value ' + 'in x' in text for text in texts)\n"
        " return [2]"
    )
    task = HumanEval([DOUBLE])
    assert task.grade(task[0], code)


def test_parser_refuses_a_row_of_another_form():
    """The message lists what a row must have."""
    with pytest.raises(StageError, match="a row must have the texts task_id, prompt"):
        parse_function({"task_id": "x", "prompt": "y"})
