from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.loaders.batches import BatchLoader
from nanochat.data.loaders.conversation_rows import ConversationRows
from nanochat.errors import PreflightError, StageError

BOS, END = 1, 5


def conversation(number, *answers):
    """BOS, then for each answer a question token (masked), the answer's own tokens and END (both supervised)."""
    ids, mask = [BOS], [0]
    for turn, length in enumerate(answers):
        ids += [2, *[1000 * (number + 1) + 100 * turn + i for i in range(length)], END]
        mask += [0, *[1] * length, 1]
    return ids, mask


def loader_of(conversations, *, rows_per_batch=2, **changes):
    arguments = {"sequence_len": 12, "buffer_conversations": 4, "pad_id": BOS, "seed": 3, "epochs": 1.0}
    rows = ConversationRows(conversations, **{**arguments, "turn_end_id": END, **changes})
    return BatchLoader(rows, rows_per_batch=rows_per_batch, pad_id=BOS)


def all_batches(loader, limit=10_000):
    batches = []
    for _ in range(limit):
        try:
            batches.append(loader.next())
        except StopIteration:
            break
    return batches


def test_conversation_rows_are_the_ones_written_by_hand():
    """13 places: the longest, 9 tokens, leaves 4, in which none fits; then 7 and 5 tokens and one place of padding."""
    conversations = [conversation(0, 4), conversation(1, 2), conversation(2, 6)]
    first, second = all_batches(loader_of(conversations, rows_per_batch=1, buffer_conversations=3))
    assert first.inputs.tolist() == [[1, 2, 3000, 3001, 3002, 3003, 3004, 3005, 5, 1, 1, 1]]
    assert first.targets.tolist() == [[-1, 3000, 3001, 3002, 3003, 3004, 3005, 5, -1, -1, -1, -1]]
    assert second.inputs.tolist() == [[1, 2, 1000, 1001, 1002, 1003, 5, 1, 2, 2000, 2001, 5]]
    assert second.targets.tolist() == [[-1, 1000, 1001, 1002, 1003, 5, -1, -1, 2000, 2001, 5, -1]]


def test_conversation_as_long_as_a_row_is_placed_whole():
    ids, mask = conversation(0, 10)
    assert len(ids) == 13
    (batch,) = all_batches(loader_of([(ids, mask)]))
    assert batch.inputs.tolist() == [ids[:-1]]
    assert batch.targets.tolist() == [[-1, *ids[2:]]]


def test_conversation_that_is_too_long_is_cut_after_a_turn_and_counted():
    """Turns end at 6 and 12 of 13 places; the third does not fit."""
    ids, mask = conversation(0, 3, 4, 5)
    loader = loader_of([(ids, mask)])
    (batch,) = all_batches(loader)
    assert batch.inputs.tolist() == [[*ids[:12]]]
    assert batch.targets.tolist() == [[-1, *ids[2:6], -1, *ids[7:12], -1]]
    assert (loader.state.stats.cut_conversations, loader.state.stats.dropped_conversations) == (1, 0)


def test_conversation_that_cannot_be_cut_is_dropped_and_counted():
    loader = loader_of([conversation(0, 20), conversation(1, 2), ([BOS, 2, 2], [0, 0, 0])])
    (batch,) = all_batches(loader)
    assert batch.targets.max() == 2001
    assert (loader.state.stats.cut_conversations, loader.state.stats.dropped_conversations) == (0, 2)
    assert loader.state.progress == 1.0


def test_conversation_rows_without_a_turn_end_cut_nothing():
    loader = loader_of([conversation(0, 3, 4, 5), conversation(1, 2)], turn_end_id=None)
    all_batches(loader)
    assert (loader.state.stats.cut_conversations, loader.state.stats.dropped_conversations) == (0, 1)


def test_conversation_rows_stop_if_no_conversation_fits():
    with pytest.raises(StageError, match=r"none of 2 conversations fits 13 tokens .*raise `sft\.sequence_len`"):
        loader_of([conversation(0, 20), conversation(1, 30)], epochs=None).next()


def test_conversation_rows_refuse_an_empty_mixture():
    with pytest.raises(PreflightError, match="no conversation"):
        loader_of([])


mixtures = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(mixtures, st.integers(1, 4), st.integers(1, 10), st.integers(1, 2))
def test_conversation_rows_hold_every_supervised_token_once_per_epoch(
    answers, rows_per_batch, buffer_conversations, epochs
):
    conversations = [conversation(number, *lengths) for number, lengths in enumerate(answers)]
    loader = loader_of(
        conversations,
        sequence_len=19,
        rows_per_batch=rows_per_batch,
        buffer_conversations=buffer_conversations,
        epochs=float(epochs),
    )
    batches = all_batches(loader)
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
    stats = loader.state.stats
    assert stats.supervised_tokens == len(expected) * epochs
    assert stats.cut_conversations == cut * epochs
    assert stats.placed_conversations + stats.dropped_conversations == len(conversations) * epochs
    assert loader.state.progress == 1.0
    loader.close()


@settings(max_examples=50, deadline=None)
@given(mixtures, st.integers(1, 10), st.integers(1, 2))
def test_conversation_rows_hold_only_whole_conversations_and_masked_padding(answers, buffer_conversations, epochs):
    """Rows are split at their BOS: a part longer than a BOS alone is a conversation from its first token on."""
    conversations = [conversation(number, *lengths) for number, lengths in enumerate(answers)]
    loader = loader_of(conversations, sequence_len=19, buffer_conversations=buffer_conversations, epochs=float(epochs))
    seen = dict.fromkeys(range(len(answers)), 0)
    padding = 0
    for batch in all_batches(loader):
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
    assert 0 <= loader.state.stats.padding_tokens - padding <= loader.state.stats.placed_conversations
    loader.close()


MIXTURE = [
    conversation(number, *[1 + (number * 7 + turn) % 5 for turn in range(1 + number % 2)]) for number in range(40)
]


def test_conversation_order_differs_between_epochs_and_seeds():
    def order(**changes):
        loader = loader_of(MIXTURE, rows_per_batch=1, buffer_conversations=1, epochs=2.0, **changes)
        rows = [batch.targets[0] for batch in all_batches(loader)]
        return [token // 1000 - 1 for row in rows for token in row.tolist() if token >= 1000 and token % 1000 == 0]

    numbers = order()
    assert sorted(numbers[:40]) == sorted(numbers[40:]) == list(range(40))
    assert numbers[:40] != numbers[40:]
    assert numbers == order()
    assert numbers != order(seed=4)
    assert numbers[:40] != list(range(40))


def test_conversation_rows_of_half_an_epoch_hold_half_of_the_conversations():
    loader = loader_of(MIXTURE, epochs=0.5)
    all_batches(loader)
    assert loader.state.stats.placed_conversations == 20
    assert (loader.state.progress, loader.state.epochs_done) == (1.0, 0.5)


def test_conversation_progress_grows_from_0_to_1():
    loader = loader_of(MIXTURE)
    progress = [loader.state.progress]
    while all_batches(loader, 1):
        progress.append(loader.state.progress)
    assert progress[0] == 0.0
    assert progress[-1] == 1.0
    assert progress == sorted(progress)
