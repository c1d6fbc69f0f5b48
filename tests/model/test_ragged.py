"""Rows without padding get the same hidden states as each row by itself, including rows that continue another row."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.model import dispatch
from nanochat.model.dispatch import FastGPT
from nanochat.model.ragged import attention as ragged_attention
from nanochat.model.ragged.ragged_rows import Row, lay_out


@pytest.fixture(scope="module", params=["seed", "current", "portable"])
def model(request, make_random_model) -> FastGPT:
    """Windows shorter than the longest row, grouped heads, and every weight random."""
    length = 256 if request.param == "current" else 64
    return make_random_model(request.param, n_layer=3, vocab_size=300, window_pattern="SSL", sequence_len=length)


def random_rows(shapes: list[tuple[int, tuple[int, ...]]]) -> list[Row]:
    """Return rows; each shape is the length of a row and of the rows that continue it."""
    generator = np.random.default_rng(1)
    rows: list[Row] = []
    for length, following in shapes:
        parent = len(rows)
        rows.append(Row(tuple(generator.integers(0, 300, size=length).tolist())))
        rows += [Row(tuple(generator.integers(0, 300, size=more).tolist()), parent) for more in following]
    return rows


@pytest.fixture(params=["row by row", "by group"])
def form(request, monkeypatch):
    """Both implementations, computed here, with blocks of 16 queries."""
    monkeypatch.setattr(dispatch, "runs_on_cpu", lambda: request.param == "row by row")
    monkeypatch.setattr(ragged_attention, "_BLOCK_SCORES", 0)
    monkeypatch.setattr(ragged_attention, "_FEWEST_QUERIES", 16)


@pytest.mark.usefixtures("form")
def test_hidden_ragged_equals_each_row_alone(model):
    """Short and long rows, beyond the windows, in groups with and without padding; values are about 1."""
    shapes = [(40, (20, 3, 24)), (1, ()), (17, (1,)), (60, ()), (33, (22, 22, 22, 31)), (40, (20, 18)), (9, (2, 2))]
    rows = random_rows(shapes)
    layout = lay_out(rows)
    found = np.array(model.hidden_ragged(layout))
    assert layout.tokens.size == sum(len(row.tokens) for row in rows) == len(found)
    for row, extent in zip(rows, layout.extents, strict=True):
        before = rows[row.parent].tokens if row.parent is not None else ()
        alone = np.array(model.hidden(mx.array([[*before, *row.tokens]]))[0, len(before) :])
        np.testing.assert_allclose(found[extent.own], alone, atol=2e-4)


@given(st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), max_size=5).map(tuple)), min_size=1))
@settings(max_examples=50)
def test_every_token_attends_once_and_sees_its_row(shapes):
    """`order` selects every token from the groups' padded queries; its keys are its row, after the parent row."""
    rows = random_rows(shapes)
    layout = lay_out(rows)
    groups = layout.grouping.groups
    own = np.concatenate([np.array(group.queries).reshape(-1) for group in groups])
    assert own[np.array(layout.grouping.order)].tolist() == list(range(layout.tokens.size))
    seen = {}
    for group in groups:
        starts = np.zeros(group.keys.shape[0], int) if group.starts is None else np.array(group.starts)
        for queries, keys, start in zip(np.array(group.queries), np.array(group.keys), starts, strict=True):
            seen[int(queries[0])] = keys[start:].tolist()
    numbers = list(range(layout.tokens.size))
    for row, extent in zip(rows, layout.extents, strict=True):
        before = [] if row.parent is None else numbers[layout.extents[row.parent].own]
        expected = before + numbers[extent.own]
        assert seen[extent.own.start][: len(expected)] == expected
