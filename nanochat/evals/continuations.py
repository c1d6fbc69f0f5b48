"""Log-probability of parts of token rows, many rows at once.

Rows come in groups that may begin alike (the options of one question). What a group's rows share is computed once, and
the rows go on from there; many groups go through the model together, without padding
(`nanochat.model.ragged.rows`). Logits are computed at scored positions only.

Shape letters: C width, N scored positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from nanochat.inference.causal_model import CausalModel
from nanochat.model.cpu import fast_math
from nanochat.model.device import runs_on_cpu
from nanochat.model.ragged.rows import Row, lay_out

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CPU_TOKENS_PER_BATCH, GPU_TOKENS_PER_BATCH = 2048, 8192
"""A CPU's caches like small batches, a GPU is then idle between its kernels."""
_SHORTEST_SHARE = 8
"""Shorter common beginnings are not worth a row of their own."""
_LOGIT_ROWS = 1024


@dataclass(frozen=True)
class Continuation:
    """A row of tokens, BOS first, of which [start, end) is scored; token j is predicted from token j - 1."""

    tokens: tuple[int, ...]
    start: int
    end: int
    is_truncated: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.start <= self.end <= len(self.tokens), f"span {self.start}:{self.end} of {len(self.tokens)}"


@dataclass(frozen=True)
class ContinuationScore:
    """What the model says about a span."""

    logprob: float
    """Sum over the span, nats, at most 0."""
    tokens: int
    is_greedy: bool
    """Every token of the span is the likeliest one."""

    @property
    def mean_nats(self) -> float:
        """Mean negative log-likelihood of a token; 0 for an empty span."""
        return -self.logprob / self.tokens if self.tokens else 0.0


def make_continuation(tokens: Sequence[int], start: int, end: int, *, max_tokens: int | None) -> Continuation:
    """Return the span; a row longer than `max_tokens` loses tokens on the left, and start and end move along.

    Scored tokens that are lost that way, and the first that is left (nothing predicts it), are not scored.
    """
    lost = max(0, len(tokens) - max_tokens) if max_tokens is not None else 0
    first = max(start - lost, 1)
    return Continuation(tuple(tokens[lost:]), first, max(end - lost, first), is_truncated=lost > 0)


def score_continuations(
    model: CausalModel,
    groups: Sequence[Sequence[Continuation]],
    *,
    max_tokens_per_batch: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> list[list[ContinuationScore]]:
    """Return the score of every span, grouped as given.

    Args:
        max_tokens_per_batch: tokens per forward at most; a single group may exceed it. None chooses for the device.
        on_scored: called with the number of groups scored so far.
    """
    scores: dict[int, list[ContinuationScore]] = {}
    shares = [shared_prefix_length(group) for group in groups]
    for numbers in _batches(groups, shares, max_tokens_per_batch or tokens_per_batch()):
        found = iter(_score_batch(model, [(groups[number], shares[number]) for number in numbers]))
        for number in numbers:
            scores[number] = list(itertools.islice(found, len(groups[number])))
        if on_scored is not None:
            on_scored(len(scores))
    return [scores[number] for number in range(len(groups))]


def tokens_per_batch() -> int:
    """Return how many tokens a forward should have."""
    return CPU_TOKENS_PER_BATCH if runs_on_cpu() else GPU_TOKENS_PER_BATCH


def shared_prefix_length(group: Sequence[Continuation]) -> int:
    """Return how many first tokens all rows have in common and none needs logits at, 0 where it does not pay."""
    if len(group) < 2:
        return 0
    limit = min(span.start for span in group) - 1
    low, high = min(span.tokens for span in group), max(span.tokens for span in group)
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))
    shared = min(limit, alike)
    return shared if shared >= _SHORTEST_SHARE else 0


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many first elements are the same."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def most_likely(scores: Sequence[ContinuationScore]) -> int:
    """Return the index of the smallest mean loss, the first of equal ones; an empty span loses to any other."""
    return min(range(len(scores)), key=lambda i: (scores[i].tokens == 0, scores[i].mean_nats))


def _batches(groups: Sequence[Sequence[Continuation]], shares: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of groups that go together: alike in shape, `max_tokens` tokens at most or one group."""
    batch: list[int] = []
    tokens = 0
    for number in sorted(range(len(groups)), key=lambda n: (shares[n] > 0, sum(len(s.tokens) for s in groups[n]))):
        more = shares[number] + sum(len(span.tokens) - shares[number] for span in groups[number])
        if batch and tokens + more > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += more
    if batch:
        yield batch


def _score_batch(model: CausalModel, batch: Sequence[tuple[Sequence[Continuation], int]]) -> list[ContinuationScore]:
    rows: list[Row] = []
    spans: list[Continuation] = []
    read_from: list[tuple[int, int]] = []  # of each span: the row that reads its end, the token that the row begins at
    for group, shared in batch:
        parent = len(rows) if shared else None
        if shared:
            rows.append(Row(group[0].tokens[:shared]))
        for span in group:
            spans.append(span)
            read_from.append((len(rows), shared))
            if span.end > span.start:  # else nothing is asked
                rows.append(Row(span.tokens[shared : span.end - 1], parent))
    if not rows:
        return [ContinuationScore(0.0, 0, is_greedy=True) for _ in spans]
    layout = lay_out(rows)
    positions: list[int] = []
    for span, (row, begin) in zip(spans, read_from, strict=True):
        if span.end > span.start:
            before = layout.extents[row].own.start - begin - 1
            positions.extend(range(before + span.start, before + span.end))
    targets = [token for span in spans for token in span.tokens[span.start : span.end]]
    logprobs, greedy = _judge(model, model.hidden_ragged(layout), positions, targets)
    scores, done = [], 0
    for span in spans:
        part = slice(done, done + span.end - span.start)
        done = part.stop
        scores.append(ContinuationScore(float(logprobs[part].sum()), span.end - span.start, bool(greedy[part].all())))
    return scores


def _judge(model: CausalModel, hidden: mx.array, positions: list[int], targets: list[int]) -> tuple[Doubles, Bools]:
    """Return each target's log-probability and whether it is the likeliest token, (N,), from hidden (rows, C)."""
    logprobs, greedy = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    size = max(1, fast_math.BLOCK_ELEMENTS // model.config.vocab_size) if runs_on_cpu() else _LOGIT_ROWS
    for start in range(0, len(positions), size):
        rows = hidden[mx.array(positions[start : start + size])]
        found, is_likeliest = model.judge(rows, mx.array(targets[start : start + size]))
        mx.eval(found, is_likeliest)
        logprobs.append(np.array(found, dtype=np.float64))
        greedy.append(np.array(is_likeliest))
    return np.concatenate(logprobs), np.concatenate(greedy)
