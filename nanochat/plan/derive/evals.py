"""The specifications of the two evaluation stages. Suites are sorted by name."""

from __future__ import annotations

from typing import assert_never

from nanochat.plan import specs
from nanochat.plan.derive.derivation import Derivation
from nanochat.recipe.schema import recipe as schema


def derive_base_eval(section: schema.BaseEval, given: Derivation) -> specs.BaseEvalSpec:
    """Return the specification of the base_eval stage."""
    sources = given.sources
    suites: dict[str, specs.BaseSuiteSpec] = {}
    for name, suite in sorted(section.suites.items()):
        match suite:
            case schema.BpbSuite():
                source = suite.source or given.bpb_source
                if source is None:
                    message = f"`{name}` names no source, and there is no `pretrain` section to take it from"
                    advice = "add `source: NAME`, a source with held-out documents"
                    given.issues.refuse(("base_eval", "suites", name), "missing-field", message, advice=advice)
                    continue
                suites[name] = specs.BpbSuiteSpec(source=sources[source], split=suite.split, tokens=suite.tokens)
            case schema.ChoiceSuite():
                fields = suite.model_dump(exclude={"source"})
                suites[name] = specs.ChoiceSuiteSpec(source=sources[suite.source], **fields)
            case schema.CoreSuite():
                suites[name] = specs.CoreSuiteSpec(source=sources[suite.source], max_problems=suite.max_problems)
            case _:
                assert_never(suite)
    return specs.BaseEvalSpec(
        suites=suites,
        samples=section.samples,
        sample_tokens=section.sample_tokens,
        init_from=section.init_from,
        seed=given.recipe.seed,
    )


def derive_chat_eval(section: schema.ChatEval, given: Derivation) -> specs.ChatEvalSpec:
    """Return the specification of the chat_eval stage."""
    suites = {
        name: specs.ChatSuiteSpec(source=given.sources[suite.source], **suite.model_dump(exclude={"source"}))
        for name, suite in sorted(section.suites.items())
    }
    return specs.ChatEvalSpec(suites=suites, init_from=section.init_from, seed=given.recipe.seed)
