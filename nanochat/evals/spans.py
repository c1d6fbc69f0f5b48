"""Log-probability of parts of token rows, many rows at once.

Rows come in groups that may begin alike (the options of one question). What a group's rows share is computed once into
a KV cache, and the rows go on from there; groups with similar shares are batched. Logits are computed at scored
positions only. Causal attention makes padding on the right harmless, so nothing is masked.

Shape letters: G groups, R rows, T time, C width, V vocabulary, N scored positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from nanochat.inference.forward import CausalModel, read
from nanochat.model import fast_math
from nanochat.model.device import runs_on_cpu

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_TOKENS_PER_BATCH = 8192
_ENOUGH_TOKENS = 1024
"""A batch of so many tokens is efficient already: it ends early where more rows would add this share of waste."""
_WASTE = 0.1
_MOST_WASTE = 0.3
"""Share of waste at which a batch ends however small it is."""
_SHORTEST_SHARE = 8
"""Shorter common beginnings are not worth a cache."""
_LOGIT_ROWS = 1024


@dataclass(frozen=True)
class Span:
    """A row of tokens, BOS first, of which [start, end) is scored; token j is predicted from token j - 1."""

    tokens: tuple[int, ...]
    start: int
    end: int
    is_truncated: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.start <= self.end <= len(self.tokens), f"span {self.start}:{self.end} of {len(self.tokens)}"


@dataclass(frozen=True)
class SpanScore:
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


def make_span(tokens: Sequence[int], start: int, end: int, *, max_tokens: int | None) -> Span:
    """Return the span; a row longer than `max_tokens` loses tokens on the left, and start and end move along.

    Scored tokens that are lost that way, and the first that is left (nothing predicts it), are not scored.
    """
    lost = max(0, len(tokens) - max_tokens) if max_tokens is not None else 0
    first = max(start - lost, 1)
    return Span(tuple(tokens[lost:]), first, max(end - lost, first), is_truncated=lost > 0)


def score_spans(
    model: CausalModel,
    groups: Sequence[Sequence[Span]],
    *,
    max_tokens_per_batch: int = MAX_TOKENS_PER_BATCH,
    on_scored: Callable[[int], None] | None = None,
) -> list[list[SpanScore]]:
    """Return the score of every span, grouped as given.

    Args:
        max_tokens_per_batch: positions per forward at most, padding counted; a single group may exceed it.
        on_scored: called with the number of groups scored so far.
    """
    scores: dict[int, list[SpanScore]] = {}
    for numbers, shared in _batches(groups, max_tokens_per_batch):
        found = iter(_score_batch(model, [groups[number] for number in numbers], shared))
        for number in numbers:
            scores[number] = list(itertools.islice(found, len(groups[number])))
        if on_scored is not None:
            on_scored(len(scores))
    return [scores[number] for number in range(len(groups))]


def shared_tokens(group: Sequence[Span]) -> int:
    """Return how many first tokens all rows have in common and none needs logits at, 0 where it does not pay."""
    if len(group) < 2:
        return 0
    limit = min(span.start for span in group) - 1
    low, high = min(span.tokens for span in group), max(span.tokens for span in group)
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))
    shared = min(limit, alike)
    return shared if shared >= _SHORTEST_SHARE else 0


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many first elements are the same."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def likeliest(scores: Sequence[SpanScore]) -> int:
    """Return the index of the smallest mean loss, the first of equal ones; an empty span loses to any other."""
    return min(range(len(scores)), key=lambda i: (scores[i].tokens == 0, scores[i].mean_nats))


def _batches(groups: Sequence[Sequence[Span]], max_tokens: int) -> Iterator[tuple[list[int], int]]:
    """Yield the numbers of groups that go together, and how many first tokens of each are computed once.

    That is the smallest share of the batch: equal shares need no padding and no mask. What a group shares beyond it is
    computed for each of its rows, so groups go by their share, largest first; those without one stay by themselves.
    """
    shares = [shared_tokens(group) for group in groups]
    tails = [sum(len(s.tokens) - share for s in group) for group, share in zip(groups, shares, strict=True)]
    batch: list[int] = []
    useful = again = rows = 0
    for number in sorted(range(len(groups)), key=lambda n: (shares[n], tails[n]), reverse=True):
        share = shares[number]
        more_again = again + rows * (shares[batch[-1]] - share) if batch else 0
        more_useful = useful + share + tails[number]
        is_full = more_useful + more_again > max_tokens
        if batch and (is_full or _is_wasteful(more_again, useful) or (share == 0) != (shares[batch[-1]] == 0)):
            yield batch, shares[batch[-1]]
            batch, more_useful, more_again, rows = [], share + tails[number], 0, 0
        batch.append(number)
        useful, again, rows = more_useful, more_again, rows + len(groups[number])
    if batch:
        yield batch, shares[batch[-1]]


def _rows_alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of rows that are fed together: all of similar length, the longest first, no empty ones."""
    part: list[int] = []
    tokens = 0
    for number in sorted((n for n in range(len(lengths)) if lengths[n]), key=lambda n: lengths[n], reverse=True):
        padding = (len(part) + 1) * lengths[part[0]] - tokens - lengths[number] if part else 0
        if _is_wasteful(padding, tokens):
            yield part
            part, tokens = [], 0
        part.append(number)
        tokens += lengths[number]
    if part:
        yield part


def _is_wasteful(waste: int, useful: int) -> bool:
    """Return whether a batch of `useful` tokens ends before what would make it compute `waste` tokens for nothing."""
    return waste > (_WASTE if useful >= _ENOUGH_TOKENS else _MOST_WASTE) * useful


def _score_batch(model: CausalModel, batch: Sequence[Sequence[Span]], shared: int) -> list[SpanScore]:
    spans = [span for group in batch for span in group]
    sources = [number for number, group in enumerate(batch) for _ in group]
    tails = [span.tokens[shared:-1] for span in spans]
    scores = {n: SpanScore(0.0, 0, is_greedy=True) for n, tail in enumerate(tails) if not tail}
    cache = None
    if shared:
        beginnings = [group[0].tokens[:shared] for group in batch]
        cache = read(model, beginnings, room=max(len(tail) for tail in tails))[1]
    for rows in _rows_alike([len(tail) for tail in tails]):
        padded = np.zeros((len(rows), len(tails[rows[0]])), dtype=np.int32)
        for line, row in zip(padded, rows, strict=True):
            line[: len(tails[row])] = tails[row]
        branch = cache.take([sources[row] for row in rows]) if cache is not None else None
        hidden = model.hidden(mx.array(padded), branch)
        scores.update(zip(rows, _score_hidden(model, hidden, [spans[row] for row in rows], shared), strict=True))
    return [scores[n] for n in range(len(spans))]


def _score_hidden(model: CausalModel, hidden: mx.array, spans: Sequence[Span], shared: int) -> list[SpanScore]:
    """Score `spans` from hidden (R, T, C), whose first position is token number `shared` of each."""
    width = hidden.shape[1]
    positions: list[int] = []
    targets: list[int] = []
    for row, span in enumerate(spans):
        first = row * width - 1 - shared
        positions.extend(range(first + span.start, first + span.end))
        targets.extend(span.tokens[span.start : span.end])
    logprobs, greedy = _judge(model, hidden.reshape(-1, hidden.shape[-1]), positions, targets)
    scores, done = [], 0
    for span in spans:
        part = slice(done, done + span.end - span.start)
        done = part.stop
        scores.append(SpanScore(float(logprobs[part].sum()), span.end - span.start, bool(greedy[part].all())))
    return scores


def _judge(model: CausalModel, hidden: mx.array, positions: list[int], targets: list[int]) -> tuple[Doubles, Bools]:
    """Return each target's log-probability and whether it is the likeliest token, (N,), from hidden (R * T, C)."""
    logprobs, greedy = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    size = max(1, fast_math.BLOCK_ELEMENTS // model.config.vocab_size) if runs_on_cpu() else _LOGIT_ROWS
    for start in range(0, len(positions), size):
        rows = hidden[mx.array(positions[start : start + size])]
        found, is_likeliest = model.judge(rows, mx.array(targets[start : start + size]))
        mx.eval(found, is_likeliest)
        logprobs.append(np.array(found, dtype=np.float64))
        greedy.append(np.array(is_likeliest))
    return np.concatenate(logprobs), np.concatenate(greedy)

