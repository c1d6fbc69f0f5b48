"""The real data sets, with all their rows. These tests take minutes and need a folder with the data.

    NANOCHAT_TEST_DATA=../shared/data pytest -m slow tests/tasks/test_real_data.py

The folder contains eval/gsm8k, eval/mmlu, ... as `recipes/local_text.yaml` describes. Every test run checks the small
samples beside this file in the same way.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nanochat.data.packing.conversation_packer import fit_to_row
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.tasks.build import build_task, check_task
from nanochat.tasks.multiple_choice.base_models import build_choice_items
from nanochat.tasks.task import gold_text
from nanochat.tokenizer import bpe
from nanochat.tokenizer.chat_format import render
from nanochat.tools.calculator import calculate

SAMPLES = Path(__file__).parent / "samples"
FOLDER = os.environ.get("NANOCHAT_TEST_DATA")
REAL = Path(FOLDER).absolute() / "eval" if FOLDER else Path("nowhere")
slow = [pytest.mark.slow, pytest.mark.skipif(FOLDER is None, reason="NANOCHAT_TEST_DATA names no folder")]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that is trained on arithmetic, so that calls consist of tokens of several characters."""
    texts = [f"{a}*{b}={a * b} and {a}/{b} or '{a}'.count('1')" for a in range(60) for b in range(1, 30)]
    return bpe.train(texts, vocab_size=400, max_chars=10**6, max_document_chars=10**4)


def read_task(name, folder, split):
    source = SourceSpec(name=name, path=(str(folder),))
    check_task(name, source, split, base=Path("unused"))
    return build_task(name, source, split, max_examples=None, seed=0, base=Path("unused"))


@pytest.mark.parametrize(
    ("folder", "fewest_calls", "most_left_out"),
    [(SAMPLES / "gsm8k", 120, 0), pytest.param(REAL / "gsm8k", 15_000, 20, marks=slow)],
    ids=["sample", "real"],
)
def test_call_outputs_in_the_data_are_what_the_engine_injects(folder, fewest_calls, most_left_out, tokenizer):
    """The ids inside a call, decoded and calculated as the engine does, give the ids of its output."""
    marks = {name: tokenizer.special(f"<|{name}|>") for name in ("python_start", "python_end", "output_start")}
    end = tokenizer.special("<|output_end|>")
    calls = annotated = 0
    for example in read_task("gsm8k", folder, "train"):
        rendered = render(tokenizer, example.conversation)
        annotated += example.meta["answer"].count("<<")
        ids = np.array(rendered.ids)
        starts = [np.flatnonzero(ids == marks[name]) for name in marks]
        for python, closed, output in zip(*starts, strict=True):
            stop = output + int(np.flatnonzero(ids[output:] == end)[0])
            assert closed + 1 == output
            expression = tokenizer.decode(ids[python + 1 : closed].tolist())
            assert ids[output + 1 : stop].tolist() == tokenizer.encode(calculate(expression)), expression
            assert rendered.mask[output : stop + 1] == [0] * (stop + 1 - output)
            assert rendered.mask[python : closed + 1] == [1] * (closed + 1 - python)
            calls += 1
    assert calls > fewest_calls
    assert annotated - calls <= most_left_out


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param(name, split, marks=slow)
        for name in ("gsm8k", "mmlu", "arc_easy", "arc_challenge")
        for split in ("dev" if name == "mmlu" else "train", "test")
    ],
)
def test_every_row_trains_on_its_answer_and_accepts_it(name, split, tokenizer):
    """The tokens of the answer and the end mark are trained on, and nothing of the question is."""
    task = read_task(name, REAL / name, split)
    assert len(task) > 200
    for example in task:
        rendered = render(tokenizer, example.conversation)
        packed = fit_to_row(rendered.ids, rendered.mask, number=0, row_tokens=10**6, turn_end_id=None)
        assert packed is not None and not packed.is_cut
        start = rendered.ids.index(tokenizer.special("<|assistant_start|>"))
        assert not any(rendered.mask[: start + 1]) and rendered.mask[start + 1] == rendered.mask[-1] == 1
        assert task.grade(example, gold_text(example))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param(name, count, marks=slow)
        for name, count in [("hellaswag", 7490), ("mmlu", 10607), ("arc_easy", 1792), ("arc_challenge", 861)]
    ],
)
def test_every_problem_for_base_models_is_read(name, count):
    source = SourceSpec(name=name, path=(str(REAL / name),))
    items = build_choice_items(name, source, base=Path("unused"), num_fewshot=2)
    assert len(items) == count
    assert all(0 <= item.gold < len(item.options) and all(option.strip() for option in item.options) for item in items)


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="NANOCHAT_TEST_DATA names no folder")
def test_all_canonical_solutions_pass_and_empty_bodies_fail():
    task = read_task("humaneval", REAL / "humaneval", "test")
    assert len(task) >= 100
    assert [example.meta["task_id"] for example in task if not task.grade(example, gold_text(example))] == []
    empty = [example.conversation.messages[0].text() + "    return None\n" for example in task]
    assert [text for example, text in zip(task, empty, strict=True) if task.grade(example, text)] == []


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="NANOCHAT_TEST_DATA names no folder")
def test_every_word_problem_refuses_near_misses_and_accepts_other_notations():
    task = read_task("gsm8k", REAL / "gsm8k", "test")
    assert len(task) >= 1000
    for example in task:
        number = gold_text(example).rpartition("#### ")[2].strip()
        assert not any(task.grade(example, text) for text in ("", number, f"The answer is {number}."))
        plain = number.replace(",", "")
        assert not any(task.grade(example, f"#### {near}") for near in (f"{plain}1", f"{plain}.5", f"1{plain}"))
        assert all(task.grade(example, f"#### {same}") for same in (f"${number}", f"{number}.", f"{plain}.0", plain))
