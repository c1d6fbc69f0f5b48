"""The specifications of the two evaluation stages. Suites are sorted by name."""

from __future__ import annotations

from typing import assert_never

from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.specs import (
    BaseEvalSpec,
    BaseSuiteSpec,
    BpbSuiteSpec,
    ChatEvalSpec,
    ChatSuiteSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
)
from nanochat.recipe.schema import recipe as schema


def derive_base_eval(section: schema.BaseEval, given: Derivation) -> BaseEvalSpec:
    """Return the specification of the base_eval stage."""
    sources = given.sources
    suites: dict[str, BaseSuiteSpec] = {}
    for name, suite in sorted(section.suites.items()):
        match suite:
            case schema.BpbSuite():
                source = suite.source or given.bpb_source
                if source is None:
                    given.issues.refuse(
                        ("base_eval", "suites", name),
                        "missing-field",
                        f"`{name}` names no source, and there is no `pretrain` section to take it from",
                        advice="add `source: NAME`, a source with held-out documents",
                    )
                    continue
                suites[name] = BpbSuiteSpec(source=sources[source], split=suite.split, tokens=suite.tokens)
            case schema.ChoiceSuite():
                fields = suite.model_dump(exclude={"source"})
                suites[name] = ChoiceSuiteSpec(source=sources[suite.source], **fields)
            case schema.CoreSuite():
                suites[name] = CoreSuiteSpec(source=sources[suite.source], max_problems=suite.max_problems)
            case _:
                assert_never(suite)
    return BaseEvalSpec(
        suites=suites,
        samples=section.samples,
        sample_tokens=section.sample_tokens,
        init_from=section.init_from,
        seed=given.recipe.seed,
    )


def derive_chat_eval(section: schema.ChatEval, given: Derivation) -> ChatEvalSpec:
    """Return the specification of the chat_eval stage."""
    suites = {
        name: ChatSuiteSpec(source=given.sources[suite.source], **suite.model_dump(exclude={"source"}))
        for name, suite in sorted(section.suites.items())
    }
    return ChatEvalSpec(suites=suites, init_from=section.init_from, seed=given.recipe.seed)
