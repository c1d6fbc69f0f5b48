"""The specifications of the tokenizer and of the two evaluation stages; suites in the order of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from nanochat.data.sources import SourceSpec
from nanochat.plan.derive.findings import Notebook
from nanochat.plan.specs import (
    BaseEvalSpec,
    BaseSuiteSpec,
    BpbSuiteSpec,
    ChatEvalSpec,
    ChatSuiteSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
    TokenizerSpec,
)
from nanochat.recipe.schema import recipe as schema

Sources = Mapping[str, SourceSpec]


def derive_tokenizer(section: schema.Tokenizer, sources: Sources, *, seed: int) -> TokenizerSpec:
    """Return the tokenizer stage's spec."""
    return TokenizerSpec(
        source=sources[section.source],
        vocab_size=section.vocab_size,
        max_chars=section.max_chars,
        max_document_chars=section.max_document_chars,
        seed=seed,
    )


def derive_base_eval(
    section: schema.BaseEval, pretrain: schema.Pretrain | None, sources: Sources, notebook: Notebook, *, seed: int
) -> BaseEvalSpec:
    """Return the base_eval stage's spec; bpb reads the pretraining mixture's first source where it names none."""
    suites: dict[str, BaseSuiteSpec] = {}
    for name, suite in sorted(section.suites.items()):
        match suite:
            case schema.BpbSuite():
                source = suite.source or bpb_source(pretrain)
                if source is None:
                    notebook.refuse(
                        ("base_eval", "suites", name),
                        "missing-field",
                        f"`{name}` names no source, and there is no `pretrain` section to take it from",
                        advice="add `source: NAME`, a source with held-out documents",
                    )
                    continue
                suites[name] = BpbSuiteSpec(source=sources[source], split=suite.split, tokens=suite.tokens)
            case schema.ChoiceSuite():
                suites[name] = ChoiceSuiteSpec(
                    task=suite.task,
                    source=sources[suite.source],
                    split=suite.split,
                    max_problems=suite.max_problems,
                    num_fewshot=suite.num_fewshot,
                )
            case schema.CoreSuite():
                suites[name] = CoreSuiteSpec(source=sources[suite.source], max_problems=suite.max_problems)
            case _:
                assert_never(suite)
    return BaseEvalSpec(
        suites=suites,
        samples=section.samples,
        sample_tokens=section.sample_tokens,
        init_from=section.init_from,
        seed=seed,
    )


def bpb_source(pretrain: schema.Pretrain | None) -> str | None:
    """Return the name of the source that bpb reads by default: the first written in the pretraining mixture."""
    return next(iter(pretrain.data)) if pretrain else None


def derive_chat_eval(section: schema.ChatEval, sources: Sources, *, seed: int) -> ChatEvalSpec:
    """Return the chat_eval stage's spec."""
    suites = {
        name: ChatSuiteSpec(
            task=suite.task,
            source=sources[suite.source],
            split=suite.split,
            max_problems=suite.max_problems,
            num_samples=suite.num_samples,
            max_tokens=suite.max_tokens,
            temperature=suite.temperature,
            top_k=suite.top_k,
        )
        for name, suite in sorted(section.suites.items())
    }
    return ChatEvalSpec(suites=suites, init_from=section.init_from, seed=seed)
