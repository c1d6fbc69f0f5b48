"""Tasks are built from sources, cut to parts of a split, and mixed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError, StageError
from nanochat.tasks.build import build_task, check_task
from nanochat.tasks.generative.spelling import Spelling
from nanochat.tasks.mixture import TaskMixture, take_shuffled, take_slice
from nanochat.tasks.multiple_choice.base_models import build_choice_items, check_choices
from nanochat.tasks.table import TASKS, ExampleTask, mixture_counts
from nanochat.tasks.task import gold_text
from nanochat.tokenizer.chat_format import render

SAMPLES = Path(__file__).parent / "samples"
MMLU = [{"question": f"q{n}", "subject": "s", "choices": ["w", "x", "y", "z"], "answer": n % 4} for n in range(12)]
ARC = [{"question": f"q{n}", "choices": {"text": ["w", "x"], "label": ["1", "2"]}, "answerKey": "2"} for n in range(12)]
CHAT = [
    {"messages": [{"role": "user", "content": f"hi {n}"}, {"role": "assistant", "content": f"yo {n}"}]}
    for n in range(12)
]


@pytest.fixture
def sources(tmp_path):
    sources = {name: SourceSpec(name=name, builtin="spelling") for name in ("spelling_bee", "simple_spelling")}
    sources |= {name: SourceSpec(name=name, path=(str(SAMPLES / name),)) for name in ("gsm8k", "humaneval")}
    for name, rows in {"mmlu": MMLU, "arc_easy": ARC, "arc_challenge": ARC, "conversations": CHAT}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources[name] = SourceSpec(name=name, path=(str(path),))
    return sources


def _build(name, sources, split=None, **options):
    split = split or ("test" if name == "humaneval" else "train")
    options = {"max_examples": None, "seed": 7, "base": Path()} | options
    return build_task(name, sources[name], split, **options)


def _spoken(message):
    """What the model must produce for an assistant's message, with special tokens written out."""
    content = message.content
    if isinstance(content, str):
        return content
    kinds = {"text": "{}", "python": "<|python_start|>{}<|python_end|>", "python_output": ""}
    return "".join(kinds[part.kind].format(part.text) for part in content)


@pytest.mark.parametrize("name", get_args(ExampleTask))
def test_build_gives_examples_whose_answers_are_trained_on(name, sources, tokenizer):
    """The tokens under the mask decode to exactly the assistant's words, and no answer is empty."""
    task = _build(name, sources)
    assert task.name == name
    assert len(task) >= 8
    letters = task[0].letters
    assert (TASKS[name].kind == "categorical") == (letters is not None)
    assert letters is None or gold_text(task[0]) in letters
    for index in range(min(len(task), 100)):
        messages = task[index].conversation.messages
        rendered = render(tokenizer, task[index].conversation)
        trained = tokenizer.decode(i for i, mask in zip(rendered.ids, rendered.mask, strict=True) if mask)
        expected = "".join(
            _spoken(message) + "<|assistant_end|>" for message in messages if message.role == "assistant"
        )
        assert trained == expected
        assert gold_text(task[index]).strip()
        assert task.grade(task[index], gold_text(task[index])) or name == "humaneval"


@pytest.mark.parametrize("name", get_args(ExampleTask))
def test_build_gives_equal_examples_for_equal_arguments(name, sources):
    first, second = (_build(name, sources, max_examples=6) for _ in range(2))
    assert len(first) == 6
    assert [first[i] for i in range(6)] == [second[i] for i in range(6)]


def test_build_takes_the_first_rows_to_train_and_a_fixed_shuffle_to_evaluate(sources):
    """The problems do not depend on the seed, and a larger number adds problems to a smaller one."""
    questions = lambda task: [example.conversation.messages[0].text().split("\n")[0][-2:] for example in task]  # noqa: E731
    whole = questions(_build("mmlu", sources))
    assert questions(_build("mmlu", sources, max_examples=5)) == whole[:5]
    five, again, eight = (
        questions(_build("mmlu", sources, "test", max_examples=n, seed=s)) for n, s in ((5, 0), (5, 1), (8, 0))
    )
    assert five == again == eight[:5]
    assert five != whole[:5]
    assert set(five) <= set(whole)
    assert questions(_build("mmlu", sources, "test", max_examples=5, choose="first")) == whole[:5]
    assert len(_build("mmlu", sources, "test", max_examples=99)) == 12


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train[:3]", [0, 1, 2]),
        ("train[-2:]", [10, 11]),
        ("train[2:-8]", [2, 3]),
        ("train[10:99]", [10, 11]),
        ("train[:]", list(range(12))),
    ],
)
def test_build_takes_a_part_of_a_split(sources, split, numbers):
    """The bounds work as in Python, so that one file can serve both training and evaluation."""

    def questions(name, **options):
        return [e.conversation.messages[0].text().split("\n")[0] for e in _build(name, sources, split, **options)]

    assert questions("conversations") == [f"hi {n}" for n in numbers]
    assert questions("conversations", max_examples=2) == [f"hi {n}" for n in numbers[:2]]
    assert sorted(questions("mmlu", max_examples=99, choose="shuffled")) == sorted(
        f"Multiple choice question: q{n}" for n in numbers
    )
    check_task("conversations", sources["conversations"], split, base=Path())
    items = build_choice_items("mmlu", sources["mmlu"], split, base=Path(), num_fewshot=1)
    assert [item.context.split("\n\n")[1] for item in items] == [f"Question: q{n}\nAnswer:" for n in numbers]


def test_build_refuses_an_empty_part_and_a_part_of_words(sources):
    for check in (check_task, check_choices):
        with pytest.raises(PreflightError, match=r"source `mmlu` .*no rows in `test\[12:\]`"):
            check("mmlu", sources["mmlu"], "test[12:]", base=Path())
    for act in (check_task, build_task):
        more = {"max_examples": 5, "seed": 0} if act is build_task else {}
        with pytest.raises(PreflightError, match=r"words have no rows as in `train\[:5\]`"):
            act("spelling_bee", sources["spelling_bee"], "train[:5]", base=Path(), **more)


def test_build_generates_the_wanted_number_of_examples_or_one_for_each_word(sources):
    assert len(_build("simple_spelling", sources, max_examples=50_000)) == 50_000
    assert len(_build("simple_spelling", sources, "test")) == len(
        {e.meta["word"] for e in _build("simple_spelling", sources, "test")}
    )


def test_build_evaluates_no_word_that_either_spelling_task_trains_on(sources):
    words = {
        split: {e.meta["word"] for name in ("spelling_bee", "simple_spelling") for e in _build(name, sources, split)}
        for split in ("train", "test")
    }
    assert not words["train"] & words["test"]


def test_build_names_a_wrong_source_and_a_broken_row(sources, tmp_path):
    with pytest.raises(PreflightError, match="`spelling_bee`"):
        build_task("mmlu", sources["spelling_bee"], "train", max_examples=None, seed=0, base=tmp_path)
    with pytest.raises(StageError, match=r"`conversations`.*split `train`.*(:| row )1: gsm8k: a row must have"):
        build_task("gsm8k", sources["conversations"], "train", max_examples=None, seed=0, base=tmp_path)


A = Spelling("simple_spelling", words=("ab", "cd", "ef"), size=3, split="train", seed=0)
B = Spelling("spelling_bee", words=("gh", "ij"), size=2, split="train", seed=0)


def _words(tasks):
    return [example.meta["word"] for example in tasks]


def test_mixture_has_the_given_number_of_examples_of_each_task():
    """A whole pass has every example. A partial pass repeats none, and the seed decides which it has."""
    mixture = TaskMixture([(A, 6), (B, 5), (A, 2)], seed=1)
    assert len(mixture) == 13
    assert _words(mixture)[:6] == _words(A) * 2
    passes = Counter(_words(mixture)[6:11])
    assert sorted(passes.values()) == [2, 3] and set(passes) == set(_words(B))
    assert len(set(_words(mixture)[11:])) == 2
    assert _words(mixture) == _words(TaskMixture([(A, 6), (B, 5), (A, 2)], seed=1))
    assert len({tuple(_words(TaskMixture([(A, 1)], seed=seed))) for seed in range(20)}) == 3
    assert len(TaskMixture([(A, 0)], seed=1)) == 0
    with pytest.raises(IndexError):
        mixture[13]


@pytest.mark.parametrize(
    ("available", "weights", "counts"),
    [
        ((7, 20), (None, None), (7, 20)),
        ((100, 400, 50), (1, 1, 1), (50, 50, 50)),
        ((100, 400, 50), (1.0, 7.0, 0.5), (57, 400, 29)),  # the second is scarcest: a weight of 1 is 400 / 7 examples
        ((1000, 3), (1, 1e-6), (1000, 1)),
    ],
)
def test_mixture_counts_follow_the_weights_up_to_the_scarcest_task(available, weights, counts):
    assert mixture_counts(available, weights) == counts


def test_subset_keeps_the_tasks_name_and_grades():
    """Slices have bounds as in Python, and a draw repeats no example."""
    assert _words(take_slice(A, 1)) == _words(A)[1:]
    assert _words(take_slice(A, 0, 99)) == _words(A)
    drawn = take_shuffled(A, 2, seed=0)
    assert len(set(_words(drawn))) == 2
    assert _words(take_shuffled(A, 3, seed=0))[:2] == _words(drawn)
    assert drawn.name == "simple_spelling"
    assert drawn.grade(drawn[0], gold_text(drawn[0]))
    assert not drawn.grade(drawn[0], gold_text(drawn[1]))
    with pytest.raises(IndexError):
        drawn[2]
