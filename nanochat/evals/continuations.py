"""Scores continuations: the log-probability that a model gives to the last part of a row of tokens.

Rows come in groups that may begin alike, such as the options of one question. The model computes what the rows of a
group share once, and many groups go through it together without padding (`nanochat.model.ragged.ragged_rows`). Logits
are computed at scored positions only.

Shape letters: C width, N scored positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from nanochat.evals.metrics import Score
from nanochat.inference.batch_sizes import CPU_SCORED_TOKENS, GPU_SCORED_ROWS, GPU_SCORED_TOKENS
from nanochat.model.cpu import fast_math
from nanochat.model.device import runs_on_cpu
from nanochat.model.dispatch import FastGPT
from nanochat.model.ragged.ragged_rows import Row, lay_out
from nanochat.tokenizer.bpe import Tokenizer

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_MIN_SHARED_TOKENS = 8
"""A shorter common prefix is not worth a row of its own."""


@dataclass(frozen=True)
class Continuation:
    """A row of tokens that begins with BOS. The tokens from `start` on are scored, each given all before it."""

    tokens: tuple[int, ...]
    start: int
    lost: tuple[int, ...] = ()
    """The first tokens of the row, which did not fit into the context."""

    def __post_init__(self) -> None:
        assert 1 <= self.start <= len(self.tokens), f"a continuation from {self.start} of {len(self.tokens)} tokens"

    @property
    def length(self) -> int:
        return len(self.tokens) - self.start


def make_continuation(tokens: Sequence[int], start: int, *, max_tokens: int | None) -> Continuation:
    """Return the continuation from `start` on; a row longer than `max_tokens` loses its first tokens.

    Scored tokens that are lost this way, and the first token that is left (nothing predicts it), are not scored.
    """
    lost = max(0, len(tokens) - max_tokens) if max_tokens is not None else 0
    return Continuation(tuple(tokens[lost:]), max(start - lost, 1), tuple(tokens[:lost]))


def missing_examples(
    tokenizer: Tokenizer, rows: Sequence[Continuation], starts: Sequence[int], *, asked: int
) -> int | None:
    """Return how many solved examples a problem lacks: `asked`, less those that the model read whole in every row.

    The result is None if none are asked for.

    Args:
        starts: where each example begins in the text of a row. There are fewer than `asked` if the data had no more.
    """
    if asked == 0:
        return None
    lost_chars = max(len(tokenizer.decode(row.lost[1:])) for row in rows)  # without BOS
    return asked - sum(start >= lost_chars for start in starts)


def score_continuations(
    model: FastGPT,
    groups: Sequence[Sequence[Continuation]],
    *,
    max_tokens_per_batch: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> list[list[Score]]:
    """Return the score of every continuation, in the groups of the input.

    Args:
        max_tokens_per_batch: upper limit of the tokens in one forward pass, which a single group may exceed. None picks
            a limit for the device.
        on_scored: called with the number of groups scored so far.
    """
    scores: dict[int, list[Score]] = {}
    shared = [shared_prefix_length(group) for group in groups]
    for numbers in _batches(groups, shared, max_tokens_per_batch or tokens_per_batch()):
        batch_scores = iter(_score_batch(model, [(groups[number], shared[number]) for number in numbers]))
        for number in numbers:
            scores[number] = list(itertools.islice(batch_scores, len(groups[number])))
        if on_scored is not None:
            on_scored(len(scores))
    return [scores[number] for number in range(len(groups))]


def tokens_per_batch() -> int:
    """Return how many tokens one forward pass should have on this device."""
    return CPU_SCORED_TOKENS if runs_on_cpu() else GPU_SCORED_TOKENS


def shared_prefix_length(group: Sequence[Continuation]) -> int:
    """Return how many first tokens are common to all rows and need no logits; 0 if sharing them does not pay."""
    if len(group) < 2:
        return 0
    rows = [row.tokens for row in group]
    # All rows between the smallest and the largest begin with what those two have in common.
    common = min(common_prefix_length(min(rows), max(rows)), min(row.start for row in group) - 1)
    return common if common >= _MIN_SHARED_TOKENS else 0


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many first elements are equal."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def most_likely(scores: Sequence[Score]) -> int:
    """Return the index of the smallest mean loss, the first one of a tie; an empty continuation loses to any other."""
    return min(range(len(scores)), key=lambda i: (scores[i].tokens == 0, scores[i].mean_nats))


def _batches(groups: Sequence[Sequence[Continuation]], shared: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of the groups of each batch: groups of similar size, `max_tokens` tokens or a single group."""
    batch: list[int] = []
    tokens = 0
    for number in sorted(range(len(groups)), key=lambda n: (shared[n] > 0, sum(len(row.tokens) for row in groups[n]))):
        more = shared[number] + sum(len(row.tokens) - shared[number] for row in groups[number])
        if batch and tokens + more > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += more
    if batch:
        yield batch


def _score_batch(model: FastGPT, batch: Sequence[tuple[Sequence[Continuation], int]]) -> list[Score]:
    rows: list[Row] = []
    continuations: list[Continuation] = []
    sources: list[tuple[int, int]] = []  # of each continuation: the row that has its end, and that row's first token
    for group, shared in batch:
        parent = len(rows) if shared else None
        if shared:
            rows.append(Row(group[0].tokens[:shared]))
        for continuation in group:
            continuations.append(continuation)
            sources.append((len(rows), shared))
            if continuation.length:
                rows.append(Row(continuation.tokens[shared:-1], parent))  # nothing follows the last token
    if not rows:
        return [Score(0.0, 0, is_greedy=True) for _ in continuations]
    layout = lay_out(rows)
    positions: list[int] = []
    for continuation, (row, first) in zip(continuations, sources, strict=True):
        if continuation.length:
            begin = layout.extents[row].own.start - first + continuation.start - 1
            positions.extend(range(begin, begin + continuation.length))
    targets = [token for continuation in continuations for token in continuation.tokens[continuation.start :]]
    logprobs, greedy = _score_targets(model, model.hidden_ragged(layout), positions, targets)
    scores, done = [], 0
    for continuation in continuations:
        part = slice(done, done + continuation.length)
        done = part.stop
        scores.append(Score(float(logprobs[part].sum()), continuation.length, bool(greedy[part].all())))
    return scores


def _score_targets(model: FastGPT, hidden: mx.array, positions: list[int], targets: list[int]) -> tuple[Doubles, Bools]:
    """Return each target's log-probability and whether it is the most likely token, (N,), from hidden (rows, C)."""
    logprobs, greedy = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    size = max(1, fast_math.BLOCK_ELEMENTS // model.config.vocab_size) if runs_on_cpu() else GPU_SCORED_ROWS
    for start in range(0, len(positions), size):
        rows = hidden[mx.array(positions[start : start + size])]
        block_logprobs, block_greedy = model.target_logprobs(rows, mx.array(targets[start : start + size]))
        mx.eval(block_logprobs, block_greedy)
        logprobs.append(np.array(block_logprobs, dtype=np.float64))
        greedy.append(np.array(block_greedy))
    return np.concatenate(logprobs), np.concatenate(greedy)
