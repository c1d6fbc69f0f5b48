"""Files that a suite names count in its fingerprint by their content. They are checked, but not run."""

from __future__ import annotations

import pytest

from nanochat.errors import RecipeError
from nanochat.plan.compile import compile_plan
from nanochat.recipe.load import load_recipe

RECIPE = """\
nanochat: 1
name: own
sources: {q: {path: q.jsonl}}
base_eval:
  init_from: ./model
  suites:
    lm: {task: lm_eval, name: ./task.yaml}
chat_eval:
  init_from: ./model
  suites:
    a: {task: questions, source: q, grade: program, program: grade.py}
    b: {task: {python: "my.py:Mine"}}
"""
GRADE = "raise SystemExit(9)\ndef grade(example, completion): return 1\n"
MINE = "class Mine:\n" + "".join(f" def {name}(self): pass\n" for name in ("num_examples", "get_example", "evaluate"))
TASK = (
    "task: mine\ninclude: base.yaml\ndataset_kwargs: {data_files: {test: 'data*.jsonl'}}\nprocess: !function code.run\n"
)
FILES = {
    "grade.py": GRADE,
    "my.py": MINE,
    "task.yaml": TASK,
    "base.yaml": "a: 1\n",
    "data1.jsonl": "{}\n",
    "code.py": "",
}


@pytest.fixture
def identities(tmp_path):
    """A function that writes the files into a folder and returns the identities of the two stages."""

    def compute(folder: str = "one", **changed: str):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for name, text in ({"recipe.yaml": RECIPE} | FILES | changed).items():
            (place / name).write_text(text)
        return {stage.name: stage.identity for stage in compile_plan(load_recipe(place / "recipe.yaml")).stages}

    return compute


@pytest.mark.parametrize(
    ("name", "text", "stage"),
    [
        ("grade.py", GRADE + "\n", "chat_eval"),
        ("my.py", MINE + "# more\n", "chat_eval"),
        ("task.yaml", TASK + "# more\n", "base_eval"),
        ("base.yaml", "a: 2\n", "base_eval"),
        ("data1.jsonl", "{} \n", "base_eval"),
        ("data2.jsonl", "{}\n", "base_eval"),
        ("code.py", "x = 1\n", "base_eval"),
    ],
)
def test_changed_file_changes_its_stage_alone(identities, name, text, stage):
    before, after = identities(), identities(**{name: text})
    assert {key for key in before if before[key] != after[key]} == {stage}


def test_place_of_the_files_does_not_count(identities):
    assert identities("one") == identities("two")


@pytest.mark.parametrize(
    ("name", "text", "place", "message"),
    [
        (
            "grade.py",
            "def score(e, c): pass\n",
            "recipe.yaml:11:62",
            "does not define the function `grade`; it defines score",
        ),
        ("my.py", "class Mine:\n  def x(:\n", "recipe.yaml:12:24", r"my.py:2:9: invalid syntax"),
        ("task.yaml", "- 1\n", "recipe.yaml:7:31", "task.yaml: a task must be a map"),
        ("task.yaml", "a: [\n", "recipe.yaml:7:31", "task.yaml:2:1: "),
        ("task.yaml", "include: none.yaml\n", "recipe.yaml:7:31", "cannot read "),
    ],
)
def test_mistake_in_a_file_is_reported_at_its_place_in_the_recipe(identities, name, text, place, message):
    with pytest.raises(RecipeError) as caught:
        identities(**{name: text})
    assert place in str(caught.value) and message in str(caught.value)


def test_rules_and_their_fields_must_go_together(identities):
    recipe = RECIPE.replace("grade: program, program: grade.py", "grade: regex, num_fewshot: 2")
    with pytest.raises(RecipeError) as caught:
        identities(**{"recipe.yaml": recipe})
    assert "with `grade: regex` the data has patterns" in str(caught.value)
    with pytest.raises(RecipeError, match="`grade: program` needs the field `program`"):
        identities(**{"recipe.yaml": RECIPE.replace(", program: grade.py", "")})


def test_suites_during_training_need_their_program_too(identities):
    monitor = """\
run:
  monitor:
    evaluate:
      chat_suites: {c: {task: questions, source: q, grade: program}}
"""
    with pytest.raises(RecipeError, match="`grade: program` needs the field `program`") as caught:
        identities(**{"recipe.yaml": RECIPE + monitor})
    assert "recipe.yaml:16:" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "stage"), [("    lm:", "    base_core:", "base_eval"), ("    a:", "    chat_core:", "chat_eval")]
)
def test_suite_with_the_name_of_another_result_is_refused(identities, old, new, stage):
    """Both would be results of the same name, and one of them would be lost."""
    name = new.strip(" :")
    with pytest.raises(RecipeError, match=f"`{name}` is also the name of a result of `{stage}`"):
        identities(**{"recipe.yaml": RECIPE.replace(old, new)})


@pytest.mark.parametrize("name", ["steps", "prompts", "skipped_steps", "score", "a_before"])
def test_held_out_suite_with_the_name_of_another_result_of_rl_is_refused(identities, name):
    """`a_before` is the score of the suite `a` before training. `b_before` is free, because no suite is named `b`."""
    suites = "\n".join(f"    {suite}: {{task: simple_spelling, source: w}}" for suite in ("a", "b_before", name))
    rl = f"rl:\n  init_from: ./model\n  data: {{c: {{task: simple_spelling, source: w}}}}\n  held_out:\n{suites}\n"
    recipe = RECIPE.replace("{q:", "{w: {builtin: spelling}, q:") + rl
    with pytest.raises(RecipeError, match=f"`{name}` is also the name of a result of `rl`") as caught:
        identities(**{"recipe.yaml": recipe})
    assert "recipe.yaml:19:" in str(caught.value)
    assert "b_before" not in str(caught.value).splitlines()[0]
