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

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_TOKENS_PER_BATCH = 8192
_ENOUGH_TOKENS = 2048
"""A batch of so many tokens is efficient already: it is closed early where more groups would mostly add padding."""
_WASTE = 1.25
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
    shares = [shared_tokens(group) for group in groups]
    for numbers in _batches(groups, shares, max_tokens_per_batch):
        found = iter(_score_batch(model, [groups[n] for n in numbers], [shares[n] for n in numbers]))
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


def _batches(groups: Sequence[Sequence[Span]], shares: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of groups that go together, longest first; groups that share nothing stay by themselves."""
    tails = [
        max((len(span.tokens) for span in group), default=0) - share
        for group, share in zip(groups, shares, strict=True)
    ]
    order = sorted(range(len(groups)), key=lambda n: (shares[n], tails[n]), reverse=True)
    batch: list[int] = []
    rows = tail = ideal = 0
    for number in order:
        share, size = shares[number], len(groups[number])
        own = share + size * tails[number]
        longest_share = shares[batch[0]] if batch else share
        cost = (len(batch) + 1) * longest_share + (rows + size) * max(tail, tails[number])
        is_wasteful = cost > _WASTE * (ideal + own) and ideal >= _ENOUGH_TOKENS
        if batch and (cost > max_tokens or is_wasteful or (share == 0) != (longest_share == 0)):
            yield batch
            batch, rows, tail, ideal = [], 0, 0, 0
        batch.append(number)
        rows, tail, ideal = rows + size, max(tail, tails[number]), ideal + own
    if batch:
        yield batch


def _score_batch(model: CausalModel, batch: Sequence[Sequence[Span]], shares: Sequence[int]) -> list[SpanScore]:
    spans = [span for group in batch for span in group]
    offsets = [share for group, share in zip(batch, shares, strict=True) for _ in group]
    width = max((len(span.tokens) - 1 - offset for span, offset in zip(spans, offsets, strict=True)), default=0)
    if width == 0:
        return [SpanScore(0.0, 0, is_greedy=True) for _ in spans]
    padded = np.zeros((len(spans), width), dtype=np.int32)
    for row, span, offset in zip(padded, spans, offsets, strict=True):
        inputs = span.tokens[offset:-1]
        row[: len(inputs)] = inputs
    cache = None
    if shares[0]:
        beginnings = [group[0].tokens[:share] for group, share in zip(batch, shares, strict=True)]
        cache = read(model, beginnings, room=width)[1].take([n for n, group in enumerate(batch) for _ in group])
    return _score_hidden(model, model.hidden(mx.array(padded), cache), spans, offsets)


def _score_hidden(
    model: CausalModel, hidden: mx.array, spans: Sequence[Span], offsets: Sequence[int]
) -> list[SpanScore]:
    """Score `spans` from hidden (R, T, C), whose row r begins with the span's token number offsets[r]."""
    width = hidden.shape[1]
    positions: list[int] = []
    targets: list[int] = []
    for row, (span, offset) in enumerate(zip(spans, offsets, strict=True)):
        first = row * width - 1 - offset
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
    for start in range(0, len(positions), _LOGIT_ROWS):
        rows = mx.array(positions[start : start + _LOGIT_ROWS])
        target = mx.array(targets[start : start + _LOGIT_ROWS])
        logits = model.logits(hidden[rows])
        chosen = mx.take_along_axis(logits, target[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
        is_likeliest = mx.argmax(logits, axis=-1) == target
        mx.eval(chosen, is_likeliest)
        logprobs.append(np.array(chosen, dtype=np.float64))
        greedy.append(np.array(is_likeliest))
    return np.concatenate(logprobs), np.concatenate(greedy)
