"""Questions of the user's own: rows of any layout, prompts with solved examples, and one score for each answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError, StageError
from nanochat.tasks.custom.python_files import PythonFile
from nanochat.tasks.custom.question_rows import QuestionRow, row_parser
from nanochat.tasks.custom.questions import Grading, check_questions, read_choice_items, read_questions
from nanochat.tasks.multiple_choice.base_models import ChoiceItem
from nanochat.tasks.task import grade_completions

CAPITALS = [
    {"question": "Capital of France?", "answer": "Paris", "choices": ["Rome", "Paris"]},
    {"question": "Capital of Italy?", "answer": ["Rome", "Roma"]},
    {"question": "Six sevens?", "answer": 42},
]


def source(folder, question_map=(), **splits):
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSpec(name="mine", path=(str(folder),), question_map=question_map)


def suite(data, **fields):
    plain = {"split": "test", "max_problems": None, "num_fewshot": 0, "fewshot_split": "train", "system": ""}
    return SimpleNamespace(source=data, **{**plain, **fields})


def parse(row, rule="exact", **parts):
    return row_parser(tuple((part, (text,) if isinstance(text, str) else text) for part, text in parts.items()), rule)(
        row
    )


def test_row_has_one_answer_or_several():
    rows = [parse(row) for row in CAPITALS]
    assert rows[0] == QuestionRow("Capital of France?", ("Paris",), ("Rome", "Paris"), ("A", "B"), (1,))
    assert rows[1:] == [QuestionRow("Capital of Italy?", ("Rome", "Roma")), QuestionRow("Six sevens?", ("42",))]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (
            {"q": "Is it?", "target": "yes", "a": "no", "b": "yes"},
            {"question": "q", "answer": "target", "choices": ("a", "b")},
        ),
        ({"q": "Is", "r": "it?", "k": 1, "o": ["no", "yes"]}, {"question": "{q} {r}", "answer": "k", "choices": "o"}),
        ({"q": "Is it?", "k": "B", "o": ["no", "yes"]}, {"question": "q", "answer": "k", "choices": "o"}),
        (
            {"q": "Is it?", "k": "y", "w": "es", "o": ["no", "yes"]},
            {"question": "q", "answer": "{k}{w}", "choices": "o"},
        ),
    ],
)
def test_map_reads_rows_of_other_layouts(row, parts):
    """The answer may be the text, the letter or the number (from 0) of a choice."""
    assert parse(row, **parts) == QuestionRow("Is it?", ("yes",), ("no", "yes"), ("A", "B"), (1,))


def test_labels_of_the_data_decide_what_a_digit_means():
    """In ARC's rows with the labels 1 to 4, the key 1 is the first option and not the second one."""
    row = {"q": "?", "c": {"text": ["x", "y"], "label": ["1", "2"]}, "key": "1"}
    assert parse(row, question="q", answer="key", choices="c").gold == (0,)


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        ({"question": "q"}, "exact", "no key `answer`; the keys are: question"),
        ({"question": " ", "answer": "a"}, "exact", "the question is empty"),
        ({"question": "q", "answer": []}, "exact", "the answer is empty"),
        ({"question": "q", "answer": {"a": 1}}, "exact", "`answer` must hold text or a number"),
        ({"question": "q", "answer": "a", "context": "c"}, "exact", "the key `context` may change"),
        ({"question": "q", "answer": "five"}, "number", "`five` is not a number"),
        ({"question": "q", "answer": "("}, "regex", "not a regular expression"),
        ({"question": "q", "answer": "a"}, "letter", "`grade: letter` needs"),
        ({"question": "q", "answer": "a"}, None, "base_eval needs"),
        ({"question": "q", "answer": ["a", "b"], "choices": ["a", "b"]}, None, "exactly one right choice"),
        ({"question": "q", "answer": "c", "choices": ["a", "b"]}, "exact", "`c` is none of the choices: a, b"),
        ({"question": "q", "answer": 1, "choices": ["1", "2"]}, "exact", "`1` may mean `1` or `2`; write the letter"),
        ({"question": "q", "answer": "B", "choices": ["B", "A"]}, "exact", "`B` may mean `B` or `A`"),
        ({"question": "q", "answer": "a", "choices": ["a", "a"]}, "exact", "`a` may mean"),
        ({"question": "q", "answer": "a", "choices": ["a"]}, "exact", "2 to 26 choices"),
    ],
)
def test_rows_that_cannot_be_graded_are_refused(row, rule, message):
    with pytest.raises(StageError) as caught:
        parse(row, rule)
    assert message in str(caught.value)


def test_chat_prompt_has_system_examples_and_question(tmp_path):
    data = source(tmp_path, train=CAPITALS[1:2], test=CAPITALS[:1])
    task = read_questions(suite(data, num_fewshot=1, system="Be brief."), Grading(rule="exact"), base=tmp_path)
    messages = [(message.role, message.text()) for message in task[0].conversation.messages]
    assert messages == [
        ("system", "Be brief."),
        *[("user", "Capital of Italy?"), ("assistant", "Rome")],
        *[("user", "Capital of France?"), ("assistant", "Paris")],
    ]
    assert [task.grade(task[0], text) for text in ("Paris", "paris")] == [1.0, 0.0]


def test_letters_show_the_choices_and_are_graded_by_letter(tmp_path):
    task = read_questions(suite(source(tmp_path, test=CAPITALS[:1])), Grading(rule="letter"), base=tmp_path)
    question, answer = (message.text() for message in task[0].conversation.messages)
    assert "- Rome=A\n- Paris=B\n" in question and answer == "B"
    assert [task.grade(task[0], text) for text in ("B", "(B)", "A", "Paris")] == [1.0, 1.0, 0.0, 0.0]
    assert task.chance == 0.5


def test_base_prompt_is_that_of_the_other_multiple_choice_tasks(tmp_path):
    data = source(
        tmp_path, test=CAPITALS[:1], train=[{**CAPITALS[0], "question": "Capital of Gaul?", "answer": "Rome"}]
    )
    (item,) = read_choice_items(suite(data, num_fewshot=1, system="Quiz."), base=tmp_path)
    head, shot = "Quiz.\n\n", "Question: Capital of Gaul?\nAnswer: Rome\n\n"
    context = f"{head}{shot}Question: Capital of France?\nAnswer:"
    assert item == ChoiceItem(context, (" Rome", " Paris"), 1, num_fewshot=1, example_starts=(len(head),))


def test_a_question_is_never_its_own_example(tmp_path):
    """All files belong to every split, so the pool of examples holds the questions themselves."""
    rows = [{"question": f"q{number}", "answer": "a"} for number in range(4)]
    data = source(tmp_path, rows=rows)
    task = read_questions(suite(data, split="train", num_fewshot=3), Grading(rule="exact"), base=tmp_path)
    for index in range(4):
        asked = [message.text() for message in task[index].conversation.messages if message.role == "user"]
        assert sorted(asked) == ["q0", "q1", "q2", "q3"] and asked[-1] == f"q{index}"
    with pytest.raises(PreflightError, match=r"num_fewshot: 4.*`train` has 3"):
        read_questions(suite(data, split="train", num_fewshot=4), Grading(rule="exact"), base=tmp_path)


def test_problems_are_chosen_by_the_shuffle_of_the_other_tasks(tmp_path):
    """random.Random(1337).shuffle of range(5) begins with 3 and 0."""
    rows = [{"question": f"q{number}", "answer": "a"} for number in range(5)]
    task = read_questions(suite(source(tmp_path, test=rows), max_problems=2), Grading(rule="exact"), base=tmp_path)
    import random

    order = list(range(5))
    random.Random(1337).shuffle(order)
    assert [task[index].meta["question"] for index in range(2)] == [f"q{number}" for number in order[:2]]


def test_program_gets_the_row_and_the_completion(tmp_path):
    """Rows for a program need no answer, and its failures score 0 with a reason."""
    source_text = "def grade(example, completion):\n return 1 / len(example['answers'] or completion)\n"
    data = source(tmp_path, test=[{"question": "q"}, {"question": "r", "answer": ["a", "b"]}])
    grading = Grading(rule="program", program=PythonFile("/x/grade.py", "grade", source_text))
    task = read_questions(suite(data), grading, base=tmp_path)
    grades = grade_completions(task, [(task[0], "four"), (task[1], "four"), (task[0], "")])
    assert [grade.score for grade in grades] == [0.25, 0.5, 0.0]
    assert [grade.problem for grade in grades] == [
        "",
        "",
        "grade.py:grade: line 2: ZeroDivisionError: division by zero",
    ]


def test_questions_of_the_shipped_recipe_accept_their_own_answers():
    """The recipe's program gives a part of the point for a part of the word."""
    from nanochat.plan.compile import compile_plan
    from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec
    from nanochat.plan.specs.suites import ChatQuestionsSpec, QuestionsSuiteSpec
    from nanochat.recipe.load import load_recipe

    specs = [stage.spec for stage in compile_plan(load_recipe(Path("own_questions"))).stages]
    (base,) = (spec.suites["code"] for spec in specs if isinstance(spec, BaseEvalSpec))
    assert isinstance(base, QuestionsSuiteSpec) and len(read_choice_items(base, base=Path("unused"))) == 12
    (chats,) = (spec.suites for spec in specs if isinstance(spec, ChatEvalSpec))
    for name, scores in {"whole_words": [1.0, 0.0], "letters": [1.0, 0.4]}.items():
        suite = chats[name]
        assert isinstance(suite, ChatQuestionsSpec)
        task = read_questions(suite, Grading(rule=suite.grade, program=suite.program), base=Path("unused"))
        river = next(task[i] for i in range(len(task)) if task[i].meta["question"].endswith("river"))
        grades = grade_completions(task, [(river, "river:r,i,v,e,r"), (river, "river:r,i,w,e,r")])
        assert [grade.score for grade in grades] == scores


def test_check_names_the_row_before_a_run(tmp_path):
    data = source(tmp_path, test=[{"question": "q", "answer": "1"}, {"question": "q", "answer": "x"}])
    with pytest.raises(PreflightError, match=r"source `mine`.*test\.jsonl:2: .*`x` is not a number"):
        check_questions(suite(data), "number", base=tmp_path)
    check_questions(suite(data), "exact", base=tmp_path)
