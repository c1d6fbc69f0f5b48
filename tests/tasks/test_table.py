"""The table of tasks covers every name that a recipe may contain, and its numbers are those of the public sets."""

from __future__ import annotations

from typing import get_args

import pytest

from nanochat.tasks.table import TASKS, ChatTask, ChoiceTask, RowTask, SftTask, TaskName, WordTask


def test_table_has_a_row_for_every_name():
    assert set(TASKS) == set(get_args(TaskName))
    for names in (ChatTask, ChoiceTask, RowTask, SftTask, WordTask):
        assert set(get_args(names)) <= set(TASKS)


def test_table_says_words_for_exactly_the_generated_tasks():
    assert {name for name, facts in TASKS.items() if facts.reads == "words"} == set(get_args(WordTask))


def test_table_gives_a_chance_level_above_zero_to_exactly_the_tasks_with_options():
    assert {name for name, facts in TASKS.items() if facts.chance > 0} == set(get_args(ChoiceTask))


@pytest.mark.parametrize(("task", "split"), [("hellaswag", "validation"), ("mmlu", "test"), ("arc_easy", "test")])
def test_table_names_the_split_that_is_usually_reported(task, split):
    """Published scores are on these splits: the labels of HellaSwag's test split are not public."""
    assert TASKS[task].eval_split == split
