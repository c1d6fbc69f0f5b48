from __future__ import annotations

import numpy as np
import pytest

from nanochat.data.documents import DocumentStream, Mixture
from nanochat.data.loaders.pretrain import PretrainLoader
from nanochat.errors import StageError

TEXTS = [f"<{i}>" + "abcdefg"[: i % 8] * (1 + i % 5) for i in range(300)]


@pytest.fixture
def make(files, base, byte_tokenizer):
    files.parquet("a.parquet", TEXTS[:200], row_group_size=64)
    files.jsonl("b.jsonl", [{"text": text} for text in TEXTS[200:]])

    def loader(**changes):
        streams = [
            (DocumentStream(files.source("a.parquet"), "train", base=base), 2.0),
            (DocumentStream(files.source("b.jsonl"), "train", base=base), 1.0),
        ]
        arguments = {"sequence_len": 20, "rows_per_batch": 3, "buffer_documents": 30, **changes}
        return PretrainLoader(streams, byte_tokenizer, **arguments)

    made = []

    def remembered(**changes):
        made.append(loader(**changes))
        return made[-1]

    yield remembered
    for one in made:
        one.close()


def batches(loader, count):
    return [loader.next() for _ in range(count)]


def same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_targets_are_the_inputs_one_step_on(make):
    batch = make().next()
    assert batch.inputs.shape == batch.targets.shape == (3, 20)
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_rows_consist_of_documents_each_behind_a_bos(make, byte_tokenizer):
    for batch in batches(make(), 40):
        for row in np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1):
            parts = np.split(row, np.flatnonzero(row == 1))
            assert len(parts[0]) == 0
            texts = [byte_tokenizer.decode(part[1:]) for part in parts[1:]]
            assert all(text in TEXTS for text in texts[:-1])
            assert any(text.startswith(texts[-1]) for text in TEXTS)


@pytest.mark.parametrize("n", [0, 1, 5, 17, 33, 60])
def test_resumed_from_a_state_the_batches_are_those_of_an_undisturbed_loader(make, n):
    """Mid-buffer, and over the end of both sources' first epoch."""
    undisturbed = make()
    expected = batches(undisturbed, 70)
    assert undisturbed.epoch >= 1
    first = make()
    same(batches(first, n), expected[:n])
    state = first.state_dict()
    second = make()
    second.load_state_dict(state)
    same(batches(second, 70 - n), expected[n:])
    assert second.stats == undisturbed.stats
    assert second.epoch == undisturbed.epoch


def test_a_loader_that_ran_on_goes_back_to_a_state(make):
    loader = make()
    batches(loader, 4)
    state = loader.state_dict()
    expected = batches(loader, 6)
    loader.load_state_dict(state)
    same(batches(loader, 6), expected)


def test_the_state_is_of_arrays_and_json(make):
    loader = make()
    batches(loader, 3)
    state = loader.state_dict()
    assert {name for name, value in state.items() if isinstance(value, np.ndarray)} == {
        "buffer_tokens",
        "buffer_lengths",
    }
    assert state["buffer_lengths"].sum() == len(state["buffer_tokens"])
    assert state["placed_tokens"] == 3 * 3 * 21


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_rows_of_one_sequence(make, world_size):
    """Rank r of W has row r, r + W, ... of what a single process packs; the states are equal."""
    rows = np.concatenate([batch.inputs for batch in batches(make(rows_per_batch=3 * world_size), 4)])
    states = []
    for rank in range(world_size):
        loader = make(rank=rank, world_size=world_size)
        own = batches(loader, 4)
        assert all(batch.elsewhere_tokens == 3 * (world_size - 1) * batch.targets.shape[1] for batch in own)
        mine = np.concatenate([batch.inputs for batch in own])
        np.testing.assert_array_equal(mine, rows[rank::world_size])
        states.append(loader.state_dict())
    for state in states[1:]:
        np.testing.assert_array_equal(state["buffer_tokens"], states[0]["buffer_tokens"])
        assert state["position"] == states[0]["position"]


@pytest.mark.parametrize(("world_size", "ranks_later"), [(2, 2), (3, 3), (2, 1), (1, 3)])
@pytest.mark.parametrize("n", [3, 8])
def test_ranks_go_on_from_the_last_rank_s_state_with_the_rows_of_one_process(make, n, world_size, ranks_later):
    """Mid-buffer; the state is of the whole sequence, so that another number of ranks may go on from it."""
    step = 6
    whole = make(rows_per_batch=step)
    expected = np.concatenate([batch.targets for batch in batches(whole, 14)])
    first = make(rows_per_batch=step // world_size, rank=world_size - 1, world_size=world_size)
    batches(first, n)
    state = first.state_dict()
    found = np.full((step * (14 - n), 20), -2, dtype=np.int32)
    for rank in range(ranks_later):
        later = make(rows_per_batch=step // ranks_later, rank=rank, world_size=ranks_later)
        later.load_state_dict(state)
        found[rank::ranks_later] = np.concatenate([batch.targets for batch in batches(later, 14 - n)])
        assert later.stats == whole.stats
    np.testing.assert_array_equal(found, expected[step * n :])


def test_an_error_of_the_source_comes_in_the_turn_of_its_batch(files, base, byte_tokenizer):
    files.jsonl("a.jsonl", [{"text": f"{i} abcdefghijkl"} for i in range(400)])
    with (files.folder / "a.jsonl").open("a") as file:
        file.write("broken\n")
    stream = DocumentStream(files.source("a.jsonl"), "train", base=base)
    loader = PretrainLoader([(stream, 1.0)], byte_tokenizer, sequence_len=30, rows_per_batch=2, buffer_documents=8)
    with pytest.raises(StageError, match=r"a\.jsonl:401: not JSON"):
        batches(loader, 400)
    with pytest.raises(StageError, match=r"a\.jsonl:401: not JSON"):
        loader.next()


def test_every_token_that_entered_is_in_a_row_in_the_buffer_or_counted_as_cropped(make, files, base):
    loader = make(rows_per_batch=1)
    batches(loader, 25)
    state = loader.state_dict()
    streams = [DocumentStream(files.source(name), "train", base=base) for name in ("a.parquet", "b.jsonl")]
    mixture = Mixture(streams, [2.0, 1.0])
    entered = sum(len(next(mixture)) + 1 for _ in range(sum(state["position"]["counts"])))
    assert loader.stats.placed_tokens + loader.stats.cropped_tokens + len(state["buffer_tokens"]) == entered
    assert 0 < loader.stats.cropped_frac < 1
