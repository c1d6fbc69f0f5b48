"""The sizes of the text and the chats that stages read, as far as the plan can know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.plan.estimate.dataset_sizes import TextChars
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.job import StageSpec
from nanochat.plan.specs.spec import StageName
from nanochat.plan.specs.suites import BpbSuiteSpec
from nanochat.plan.specs.training import PretrainSpec, SftSpec, TokenizerSpec


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """About how many characters each source has, by its name; sources of unknown size are missing.

    Attributes:
        training: text and chats to train on.
        held_out: held-out text that bits per byte are measured on.
    """

    training: Mapping[str, int] = field(default_factory=dict)
    held_out: Mapping[str, int] = field(default_factory=dict)


def find_text_sizes(
    specs: Sequence[StageSpec],
    executions: Mapping[StageName, ExecutionSpec],
    training: TextChars,
    held_out: TextChars,
) -> TextSizes:
    """Return the sizes of the sources that the stages read, from functions that know the size of one source."""
    sources = [spec.source for spec in specs if isinstance(spec, TokenizerSpec)]
    sources += [item.source for spec in specs if isinstance(spec, PretrainSpec) for item in spec.data]
    chats = [item for spec in specs if isinstance(spec, SftSpec) for item in spec.data if item.task == "conversations"]
    inputs = [item for spec in specs for item in (*spec.inputs, *executions[spec.stage].inputs)]
    return TextSizes(
        training=_sizes([*sources, *(item.source for item in chats)], training),
        held_out=_sizes((item.source for item in inputs if isinstance(item, BpbSuiteSpec)), held_out),
    )


def _sizes(sources: Iterable[SourceSpec], text_chars: TextChars) -> dict[str, int]:
    by_name = {source.name: source for source in sources}
    return {name: chars for name, source in by_name.items() if (chars := text_chars(source)) is not None}
