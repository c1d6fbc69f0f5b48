from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.loaders.sft import SftLoader
from nanochat.errors import PreflightError, StageError

BOS, END = 1, 5


def conversation(number, *answers):
    """BOS, then for each answer a question token (masked), the answer's own tokens and END (both supervised)."""
    ids, mask = [BOS], [0]
    for turn, length in enumerate(answers):
        ids += [2, *[1000 * (number + 1) + 100 * turn + i for i in range(length)], END]
        mask += [0, *[1] * length, 1]
    return ids, mask


def loader(conversations, **changes):
    arguments = {
        "sequence_len": 12,
        "rows_per_batch": 2,
        "buffer_conversations": 4,
        "pad_id": BOS,
        "seed": 3,
        "epochs": 1.0,
        "turn_end_id": END,
        **changes,
    }
    return SftLoader(conversations, **arguments)


def all_batches(loader, limit=10_000):
    found = []
    for _ in range(limit):
        try:
            found.append(loader.next())
        except StopIteration:
            return found
    return found


def test_rows_are_written_out_by_hand():
    """13 places: the longest, 9 tokens, leaves 4, in which none fits; then 7 and 5 tokens and one place of padding."""
    one, two, three = conversation(0, 4), conversation(1, 2), conversation(2, 6)
    batches = all_batches(loader([one, two, three], rows_per_batch=1, buffer_conversations=3))
    first, second = batches
    assert first.inputs.tolist() == [[1, 2, 3000, 3001, 3002, 3003, 3004, 3005, 5, 1, 1, 1]]
    assert first.targets.tolist() == [[-1, 3000, 3001, 3002, 3003, 3004, 3005, 5, -1, -1, -1, -1]]
    assert second.inputs.tolist() == [[1, 2, 1000, 1001, 1002, 1003, 5, 1, 2, 2000, 2001, 5]]
    assert second.targets.tolist() == [[-1, 1000, 1001, 1002, 1003, 5, -1, -1, 2000, 2001, 5, -1]]


def test_a_conversation_as_long_as_a_row_is_placed_whole():
    ids, mask = conversation(0, 10)
    assert len(ids) == 13
    (batch,) = all_batches(loader([(ids, mask)]))
    assert batch.inputs.tolist() == [ids[:-1]]
    assert batch.targets.tolist() == [[-1, *ids[2:]]]


def test_what_is_too_long_is_cut_behind_a_turn_and_counted():
    """Turns end at 6 and 12 of 13 places; the third does not fit."""
    ids, mask = conversation(0, 3, 4, 5)
    one = loader([(ids, mask)])
    (batch,) = all_batches(one)
    assert batch.inputs.tolist() == [[*ids[:12]]]
    assert batch.targets.tolist() == [[-1, *ids[2:6], -1, *ids[7:12], -1]]
    assert (one.stats.cut_conversations, one.stats.dropped_conversations) == (1, 0)


def test_what_cannot_be_cut_is_dropped_and_counted():
    one = loader([conversation(0, 20), conversation(1, 2), ([BOS, 2, 2], [0, 0, 0])])
    (batch,) = all_batches(one)
    assert batch.targets.max() == 2001
    assert (one.stats.cut_conversations, one.stats.dropped_conversations) == (0, 2)
    assert one.progress == 1.0


def test_without_a_turn_end_nothing_is_cut():
    one = loader([conversation(0, 3, 4, 5), conversation(1, 2)], turn_end_id=None)
    all_batches(one)
    assert (one.stats.cut_conversations, one.stats.dropped_conversations) == (0, 1)


def test_where_nothing_fits_it_stops_instead_of_padding_for_ever():
    with pytest.raises(StageError, match=r"none of the 2 conversations fits 13 tokens .*raise `sft\.sequence_len`"):
        loader([conversation(0, 20), conversation(1, 30)], epochs=None).next()


def test_an_empty_mixture_is_refused():
    with pytest.raises(PreflightError, match="no conversation"):
        loader([])


mixtures = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(mixtures, st.integers(1, 4), st.integers(1, 10), st.integers(1, 2))
def test_every_conversation_that_fits_appears_once_an_epoch_and_no_supervised_token_is_lost(
    answers, rows_per_batch, buffer_conversations, epochs
):
    conversations = [conversation(number, *lengths) for number, lengths in enumerate(answers)]
    one = loader(
        conversations,
        sequence_len=19,
        rows_per_batch=rows_per_batch,
        buffer_conversations=buffer_conversations,
        epochs=float(epochs),
    )
    batches = all_batches(one)
    expected, cut = [], 0
    for ids, mask in conversations:
        ends = [i + 1 for i, token in enumerate(ids) if token == END and i < 20]
        kept = len(ids) if len(ids) <= 20 else max(ends, default=0)
        cut += 0 < kept < len(ids)
        expected += [token for token, scored in zip(ids[:kept], mask, strict=False) if scored]
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    assert sorted(targets[targets >= 0].tolist()) == sorted(expected * epochs)
    assert all((batch.targets >= 0).any(axis=1).all() for batch in batches), "a row without supervision"
    assert all(len(batch.inputs) == rows_per_batch for batch in batches[:-1])
    assert one.stats.supervised_tokens == len(expected) * epochs
    assert one.stats.cut_conversations == cut * epochs
    assert one.stats.placed_conversations + one.stats.dropped_conversations == len(conversations) * epochs
    assert one.progress == 1.0
    one.close()


@settings(max_examples=150, deadline=None)
@given(mixtures, st.integers(1, 10), st.integers(1, 2))
def test_rows_hold_whole_conversations_and_masked_padding_and_nothing_else(answers, buffer_conversations, epochs):
    """Rows are taken apart at their BOS: what is more than a BOS alone is one conversation from its first token on."""
    conversations = [conversation(number, *lengths) for number, lengths in enumerate(answers)]
    one = loader(conversations, sequence_len=19, buffer_conversations=buffer_conversations, epochs=float(epochs))
    seen = dict.fromkeys(range(len(answers)), 0)
    padding = 0
    for batch in all_batches(one):
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            starts = [i for i, token in enumerate(inputs) if token == BOS] + [len(inputs)]
            assert starts[0] == 0
            for start, stop in itertools.pairwise(starts):
                part, scored = inputs[start:stop], targets[start : stop - 1]
                assert start == 0 or targets[start - 1] == -1
                if len(part) == 1:
                    padding += 1
                    continue
                number = part[2] // 1000 - 1
                ids, mask = conversations[number]
                # The row's last place has no input: a conversation may end there.
                assert part == ids[: len(part)] and (part[-1] == END or stop == len(inputs))
                assert scored == [i if m else -1 for i, m in zip(ids[1:], mask[1:], strict=True)][: len(scored)]
                seen[number] += 1
    fits = {n: ids.index(END) < 20 for n, (ids, _) in enumerate(conversations)}
    assert seen == {number: epochs * fits[number] for number in seen}
    assert 0 <= one.stats.padding_tokens - padding <= one.stats.placed_conversations
    one.close()


MIXTURE = [
    conversation(number, *[1 + (number * 7 + turn) % 5 for turn in range(1 + number % 2)]) for number in range(40)
]


def test_each_epoch_has_its_own_order_and_the_seed_decides_it():
    def order(**changes):
        one = loader(MIXTURE, rows_per_batch=1, buffer_conversations=1, epochs=2.0, **changes)
        rows = [batch.targets[0] for batch in all_batches(one)]
        return [token // 1000 - 1 for row in rows for token in row.tolist() if token >= 1000 and token % 1000 == 0]

    numbers = order()
    assert sorted(numbers[:40]) == sorted(numbers[40:]) == list(range(40))
    assert numbers[:40] != numbers[40:]
    assert numbers == order()
    assert numbers != order(seed=4)
    assert numbers[:40] != list(range(40))


@pytest.mark.parametrize("epochs", [2.0, None])
@pytest.mark.parametrize("n", [0, 1, 4, 9, 14])
def test_resumed_from_a_state_the_batches_are_those_of_an_undisturbed_loader(n, epochs):
    undisturbed = loader(MIXTURE, epochs=epochs)
    expected = all_batches(undisturbed, 25)
    first = loader(MIXTURE, epochs=epochs)
    all_batches(first, n)
    second = loader(MIXTURE, epochs=epochs)
    second.load_state_dict(first.state_dict())
    assert second.progress == first.progress
    found = all_batches(second, 25 - n)
    assert len(found) == len(expected) - n
    for one, other in zip(found, expected[n:], strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.targets, other.targets)
    assert second.stats == undisturbed.stats
    for one in (undisturbed, first, second):
        one.close()


def test_half_an_epoch_is_half_of_the_conversations():
    one = loader(MIXTURE, epochs=0.5)
    all_batches(one)
    assert one.stats.placed_conversations == 20
    assert (one.progress, one.epochs_done) == (1.0, 0.5)


def test_progress_grows_from_0_to_1():
    one = loader(MIXTURE)
    seen = [one.progress]
    for _ in range(1000):
        try:
            one.next()
        except StopIteration:
            break
        seen.append(one.progress)
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_rows_of_one_sequence(world_size):
    whole = all_batches(loader(MIXTURE, rows_per_batch=2 * world_size))
    rows = np.concatenate([batch.inputs for batch in whole])
    scored = [int((batch.targets >= 0).sum()) for batch in whole]
    shares = []
    for rank in range(world_size):
        mine = all_batches(loader(MIXTURE, rank=rank, world_size=world_size))
        assert [int((batch.targets >= 0).sum()) + batch.elsewhere_tokens for batch in mine] == scored
        shares.append(np.concatenate([batch.inputs[(batch.targets >= 0).any(axis=1)] for batch in mine]))
        np.testing.assert_array_equal(shares[-1][: len(rows[rank::world_size])], rows[rank::world_size])
    assert sum(map(len, shares)) == len(rows)


@pytest.mark.parametrize(("world_size", "ranks_later"), [(2, 2), (3, 3), (3, 1), (1, 2)])
@pytest.mark.parametrize("n", [2, 5])
def test_ranks_go_on_from_the_last_rank_s_state_with_the_rows_of_one_process(n, world_size, ranks_later):
    """Mid-buffer, to the last row; a rank that the last batch has no row for gets a masked one."""
    step = 6
    rows = [
        np.stack([row, scored])
        for batch in all_batches(loader(MIXTURE, rows_per_batch=step))
        for row, scored in zip(batch.inputs, batch.targets, strict=True)
    ]
    assert len(rows) % step
    first = loader(MIXTURE, rows_per_batch=step // world_size, rank=world_size - 1, world_size=world_size)
    all_batches(first, n)
    state = first.state_dict()
    found, counts = {}, set()
    for rank in range(ranks_later):
        later = loader(MIXTURE, rows_per_batch=step // ranks_later, rank=rank, world_size=ranks_later)
        later.load_state_dict(state)
        mine = all_batches(later)
        counts.add(len(mine))
        pairs = [pair for batch in mine for pair in zip(batch.inputs, batch.targets, strict=True)]
        for place, (row, scored) in enumerate(pairs):
            if (scored >= 0).any():
                found[step * n + rank + place * ranks_later] = np.stack([row, scored])
    assert len(counts) == 1 and sorted(found) == list(range(step * n, len(rows)))
    for place, row in found.items():
        np.testing.assert_array_equal(row, rows[place])
    first.close()


def test_ranks_get_equally_many_batches():
    """With one row left for two ranks the second gets a masked one, so that both take the step."""
    single = [conversation(0, 3)]
    counts = [len(all_batches(loader(single, rank=rank, world_size=2))) for rank in range(2)]
    assert counts == [1, 1]
    (empty,) = all_batches(loader(single, rank=1, world_size=2))
    assert (empty.targets == -1).all()
