"""A class of the user's is read without running it, and runs in the sandbox alone."""

from __future__ import annotations

import pytest

from nanochat.errors import PreflightError, StageError
from nanochat.tasks.custom.python_files import PythonFile, PythonFileError, read_class, read_function
from nanochat.tasks.custom.python_task import check_python_task, read_python_task
from nanochat.tasks.task import GradingError

HEAD = "class Sums:\n def num_examples(self): return 3\n"
EXAMPLE = ' def get_example(self, i): return {"messages": [{"role": "user", "content": f"{i}+1?"}], "sum": i + 1}\n'
EVALUATE = ' def evaluate(self, example, completion): return completion == str(example["sum"])\n'


def file(source):
    return PythonFile("/x/my_tasks.py", "Sums", source)


def test_class_gives_examples_and_grades_them():
    task = read_python_task(file(HEAD + EXAMPLE + EVALUATE), max_problems=None)
    assert [task[i].conversation.messages[0].text() for i in range(len(task))] == ["0+1?", "1+1?", "2+1?"]
    assert [task.grade(task[1], text) for text in ("2<|assistant_end|>", "3")] == [1.0, 0.0]


MISTAKES = {
    "example raises": (
        HEAD + " def get_example(self, i):\n  return [][i]\n" + EVALUATE,
        "/x/my_tasks.py:4: Sums: IndexError: list index out of range",
    ),
    "example of another form": (
        HEAD + " def get_example(self, i): return {'messages': [['user', 'q']]}\n" + EVALUATE,
        "Sums.get_example(0) returned {'messages': [['user', 'q']]}",
    ),
    "text with half of a character": (
        HEAD + " def get_example(self, i): return {'messages': [{'role': 'user', 'content': 'a\\ud800'}]}\n" + EVALUATE,
        "Sums.get_example(0) returned text with half of a character (U+D800 at character 2)",
    ),
    "score of another type": (
        HEAD + EXAMPLE + " def evaluate(self, e, c): return 'yes'\n",
        "Sums.evaluate returned 'yes'; it must return True, False or a number",
    ),
}
SLOW_MISTAKES = {
    "no number": (
        "class Sums:\n def num_examples(self): return 'three'\n" + EXAMPLE + EVALUATE,
        "Sums.num_examples returned 'three'; it must return a whole number",
    ),
    "class that needs arguments": (
        "class Sums:\n def __init__(self, x): pass\n" + HEAD.partition("\n")[2] + EXAMPLE + EVALUATE,
        "TypeError",
    ),
    "inherited method is missing": ("class Base: pass\nclass Sums(Base): pass\n", "AttributeError"),
    "evaluate raises": (
        HEAD + EXAMPLE + " def evaluate(self, e, c):\n  return e['missing']\n",
        "my_tasks.py:5: Sums: KeyError",
    ),
    "letters": (
        HEAD + " eval_type = 'categorical'\n" + EXAMPLE + EVALUATE,
        "`eval_type` of the class must be `generative`",
    ),
    "file": (HEAD + " def get_example(self, i): return open('/etc/passwd').read()\n" + EVALUATE, "FileNotFoundError"),
    "package": ("import numpy\n" + HEAD + EXAMPLE + EVALUATE, "my_tasks.py:1: Sums: ModuleNotFoundError"),
}


@pytest.mark.parametrize("name", [*MISTAKES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_MISTAKES)])
def test_mistake_in_a_class_is_found_before_the_run_with_its_line(name):
    source, message = (MISTAKES | SLOW_MISTAKES)[name]
    with pytest.raises(PreflightError) as caught:
        check_python_task(file(source), accept_unisolated=False)
    assert message in str(caught.value) and "/x/my_tasks.py" in str(caught.value)


def test_example_may_hold_numbers_that_are_not_finite():
    example = (
        """ def get_example(self, i): return {"messages": [{"role": "user", "content": "?"}], "x": float("nan")}\n"""
    )
    task = read_python_task(
        file(HEAD + example + " def evaluate(self, e, c): return e['x'] != e['x']\n"), max_problems=1
    )
    assert task.grade(task[0], "!") == 1.0


def test_exception_on_one_completion_ends_the_stage_but_a_dying_process_scores_0():
    evaluate = " def evaluate(self, e, c):\n  if c == 'die':\n   import os; os._exit(0)\n  return int(c) == e['sum']\n"
    task = read_python_task(file(HEAD + EXAMPLE + evaluate), max_problems=1)
    with pytest.raises(StageError, match=r"my_tasks\.py:7: Sums: ValueError: invalid literal"):
        task.grade(task[0], "one")
    with pytest.raises(GradingError, match="ended before it returned"):
        task.grade(task[0], "die")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Sum: pass\n", r"does not define the class `Sums`; it defines Sum"),
        (
            "class Sums:\n def evaluate(self, e, c): pass\n",
            r"mine\.py:1: the class `Sums` has no method `num_examples`, `get_",
        ),
        ("class Sums:\n\tx = (\n", r"mine\.py:2:\d+: '\(' was never closed"),
        ("x\0", "is not a Python file|null bytes"),
    ],
)
def test_class_is_checked_without_running_the_file(tmp_path, source, message):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(PythonFileError, match=message):
        read_class(f"{path}:Sums")


def test_reading_a_file_does_not_run_it(tmp_path):
    path = tmp_path / "grade.py"
    path.write_text("def grade(e, c): return 1\ndef score(e, c): return 1\nraise SystemExit(9)\n")
    assert read_function(str(path)).name == "grade"
    assert read_function(f"{path}:score").source == path.read_text()
    with pytest.raises(PythonFileError, match="does not define the function `other`; it defines grade, score"):
        read_function(f"{path}:other")
    with pytest.raises(PythonFileError, match="cannot read"):
        read_function(f"{tmp_path / 'none.py'}:grade")
