"""Rows without padding give what each row gives by itself, those that go on from another included."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.model import ragged, ragged_attention
from nanochat.model.gpt import GPT
from nanochat.model.ragged import Row, lay_out


@pytest.fixture(scope="module", params=["seed", "current"])
def model(request, make_random_model) -> GPT:
    """Windows shorter than the longest row, grouped heads, and every weight random."""
    length = 64 if request.param == "seed" else 256
    return make_random_model(request.param, n_layer=3, vocab_size=300, window_pattern="SSL", sequence_len=length)


def random_rows(shapes: list[tuple[int, tuple[int, ...]]]) -> list[Row]:
    """Each shape is the length of a row, and of the rows that go on from it."""
    generator = np.random.default_rng(1)
    rows: list[Row] = []
    for length, following in shapes:
        parent = len(rows)
        rows.append(Row(tuple(generator.integers(0, 300, size=length).tolist())))
        rows += [Row(tuple(generator.integers(0, 300, size=more).tolist()), parent) for more in following]
    return rows


@pytest.mark.parametrize("is_cuda", [False, True])
def test_each_row_is_as_if_alone(model, is_cuda, monkeypatch):
    """Short and long rows, groups with and without padding, windows passed; values have size 1, float32 noise 1e-5.

    In both forms of attention, each with the groups that it gets.
    """
    for module in (ragged, ragged_attention):
        monkeypatch.setattr(module, "runs_kernels", lambda: is_cuda)
    shapes = [(40, (20, 3, 24)), (1, ()), (17, (1,)), (60, ()), (33, (22, 22, 22, 31)), (40, (20, 18)), (9, (2, 2))]
    rows = random_rows(shapes)
    layout = lay_out(rows)
    found = np.array(model.hidden_ragged(layout))
    assert layout.tokens.size == sum(len(row.tokens) for row in rows) == len(found)
    for row, first in zip(rows, layout.first, strict=True):
        before = rows[row.parent].tokens if row.parent is not None else ()
        alone = np.array(model.hidden(mx.array([[*before, *row.tokens]]))[0, len(before) :])
        np.testing.assert_allclose(found[first : first + len(row.tokens)], alone, atol=2e-4)


@given(st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), max_size=5).map(tuple)), min_size=1))
@settings(max_examples=50)
def test_every_token_attends_once_and_sees_its_row(shapes):
    """`order` picks, from the groups' padded queries, each token itself; its keys end with itself and begin with its
    row's first."""
    rows = random_rows(shapes)
    layout = lay_out(rows)
    own = np.concatenate([np.array(group.queries).reshape(-1) for group in layout.groups])
    assert own[np.array(layout.order)].tolist() == list(range(layout.tokens.size))
    seen = {}
    for group in layout.groups:
        starts = np.zeros(group.keys.shape[0], int) if group.starts is None else np.array(group.starts)
        for queries, keys, start in zip(np.array(group.queries), np.array(group.keys), starts, strict=True):
            seen[int(queries[0])] = keys[start:].tolist()
    for row, first in zip(rows, layout.first, strict=True):
        before = (
            [] if row.parent is None else list(range(layout.first[row.parent], first))[: len(rows[row.parent].tokens)]
        )
        expected = [*before, *range(first, first + len(row.tokens))]
        assert seen[first][: len(expected)] == expected
