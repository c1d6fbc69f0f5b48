"""Says how many examples of each task a mixture holds, and warns if its weights leave out most examples of a task.

The plan reports this as far as it knows the sizes of the tasks. The stage reports it when it has read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nanochat.plan.estimate.dataset_sizes import ExampleCount, bytes_per_token, known_questions
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs.inputs import SftItem
from nanochat.plan.specs.training import PretrainSpec, RlSpec, SftSpec
from nanochat.plan.text.estimate_notes import MANY_PASSES, shorter_horizon
from nanochat.plurals import several
from nanochat.recipe.schema.training_sections import MAX_REPEAT
from nanochat.tasks.table import TASKS, mixture_counts

_SMALL_SHARE = 0.1
"""The user is warned if the weights use less than this share of a task's examples."""


@dataclass(frozen=True, kw_only=True)
class MixturePart:
    """A task of a mixture.

    Attributes:
        name: its name in the recipe.
        examples: the number of its different examples.
        repeat: how often the mixture may hold each of them.
        weight: its share of the mixture, relative to the weights of the others; None if no task has one.
    """

    name: str
    examples: int
    repeat: int = 1
    weight: float | None = None


def count_parts(parts: Sequence[MixturePart]) -> tuple[int, ...]:
    """Return how many examples of each task an epoch of the mixture holds."""
    return mixture_counts([part.examples * part.repeat for part in parts], [part.weight for part in parts])


def describe_mixture(parts: Sequence[MixturePart], noun: str) -> str:
    """Return the size of an epoch, and how many examples (`noun`, in the singular) it holds of each task."""
    counts = count_parts(parts)
    shares = (_describe_part(part, count) for part, count in zip(parts, counts, strict=True))
    return f"an epoch has {several(sum(counts), noun)}: {', '.join(shares)}"


def _describe_part(part: MixturePart, count: int) -> str:
    whole = "" if count >= part.examples else f"the {part.examples:,} of "
    return f"{count:,} of {whole}{part.name}"


def weight_warnings(parts: Sequence[MixturePart], section: str, noun: str, *, can_repeat: bool) -> list[str]:
    """Return a warning for each task whose examples the weights mostly leave out, and how to use them.

    `section` is the place of the tasks in a recipe, such as `sft.data`. `can_repeat` says whether they have `repeat`.
    """
    warnings = []
    for part, count in zip(parts, count_parts(parts), strict=True):
        if part.weight is not None and count < _SMALL_SHARE * part.examples:
            scarcest = min(parts, key=lambda part: part.examples * part.repeat / (part.weight or 1.0))
            remedy = _way_to_use(part, scarcest, section) if can_repeat else f"add to {scarcest.name}"
            warnings.append(
                f"the weights of `{section}` leave only {count:,} of {several(part.examples, noun)} of {part.name}, "
                f"because {scarcest.name} has {scarcest.examples:,}; {remedy}, or give no task a weight"
            )
    return warnings


def _way_to_use(part: MixturePart, scarcest: MixturePart, section: str) -> str:
    """Return how often to repeat the scarcest task, so that the shares stay and all of `part` is used."""
    assert part.weight and scarcest.weight, "either all tasks have a weight or none has one"
    wanted = math.ceil(part.examples / part.weight * scarcest.weight / max(1, scarcest.examples))
    return f"set `{section}.{scarcest.name}.repeat: {min(wanted, MAX_REPEAT)}` to use more in the same shares"


def mixture_notes(stages: Sequence[StagePlan], count_examples: ExampleCount, chars: Mapping[str, int]) -> Iterator[str]:
    """Yield how many examples of each task `sft` and `rl` use, as far as that is known, and the warnings.

    `chars` holds the sizes of sources, as far as they are known.
    """
    vocab_size = next((stage.spec.model.vocab_size for stage in stages if isinstance(stage.spec, PretrainSpec)), None)
    for stage in stages:
        if isinstance(stage.spec, SftSpec):
            yield from _sft_notes(stage.spec, stage.estimate.tokens, count_examples, chars, vocab_size)
        elif isinstance(stage.spec, RlSpec):
            counts = {name: known_questions(item) for name, item in stage.spec.data.items()}
            parts = [
                MixturePart(name=name, examples=count, weight=stage.spec.data[name].weight)
                for name, count in counts.items()
                if count is not None
            ]
            if len(parts) == len(counts):
                warnings = weight_warnings(parts, "rl.data", "question", can_repeat=False)
                yield from (f"warning: {warning}" for warning in warnings)


def _sft_notes(
    spec: SftSpec, tokens: int | None, count_examples: ExampleCount, chars: Mapping[str, int], vocab_size: int | None
) -> Iterator[str]:
    counts = {item.name: count for item in spec.data if (count := count_examples(item)) is not None}
    if unknown := [item.name for item in spec.data if item.name not in counts]:
        yield f"how many conversations of each task sft uses is not known before the data is read: {', '.join(unknown)}"
        if spec.epochs is None and tokens is not None and vocab_size is not None:
            yield from _chat_passes_by_size(spec, tokens, chars, vocab_size)
        return
    parts = [
        MixturePart(name=item.name, examples=counts[item.name], repeat=item.repeat, weight=item.weight)
        for item in spec.data
    ]
    epochs = spec.epochs
    if epochs is None and tokens is not None and vocab_size is not None:
        lengths = [_example_tokens(item, counts[item.name], chars, vocab_size) for item in spec.data]
        epoch_tokens = sum(count * length for count, length in zip(count_parts(parts), lengths, strict=True))
        epochs = tokens / epoch_tokens
        for item, part, count in zip(spec.data, parts, count_parts(parts), strict=True):
            passes = round(epochs * count / max(1, part.examples))
            if item.task == "conversations" and passes > MANY_PASSES:
                yield _by_heart(item.name, f"about {passes:,} times", tokens, passes)
    horizon = "" if epochs is None else f"; its horizon is about {_show_epochs(epochs)}"
    yield f"sft: {describe_mixture(parts, 'conversation')}{horizon}"
    warnings = weight_warnings(parts, "sft.data", "conversation", can_repeat=True)
    yield from (f"warning: {warning}" for warning in warnings)


def _chat_passes_by_size(spec: SftSpec, tokens: int, chars: Mapping[str, int], vocab_size: int) -> Iterator[str]:
    """Yield how often fine-tuning reads the chats of each source at least, if that is often.

    `chars` holds the size of sources with all their keys and quotes, so the chats are read more often than that. The
    share of a task is known if all tasks have weights, or there is only one.
    """
    weights = [1.0 if len(spec.data) == 1 else item.weight or 0.0 for item in spec.data]
    for item, weight in zip(spec.data, weights, strict=True):
        if item.task == "conversations" and weight and item.source.name in chars:
            read = tokens * weight / sum(weights) * bytes_per_token(vocab_size)
            passes = round(read / max(1, chars[item.source.name]))
            if passes > MANY_PASSES:
                yield _by_heart(item.name, f"{passes:,} times or more", tokens, passes)


def _by_heart(name: str, how_often: str, tokens: int, passes: int) -> str:
    return (
        f"sft reads the conversations of {name} {how_often}: the model learns the answers by heart; "
        f"{shorter_horizon('sft', tokens, passes)}, or add chats"
    )


def _show_epochs(epochs: float) -> str:
    return several(round(epochs), "epoch") if epochs >= 10 else f"{epochs:.2g} epochs"


def _example_tokens(item: SftItem, examples: int, chars: Mapping[str, int], vocab_size: int) -> float:
    """Return about how many tokens a conversation has: of chats of known size, at most their share of the files."""
    if item.task == "conversations" and item.source.name in chars:
        return max(1.0, chars[item.source.name] / max(1, examples) / bytes_per_token(vocab_size))
    return TASKS[item.task].example_tokens
