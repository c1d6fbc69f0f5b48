"""The specification of the tokenizer stage."""

from __future__ import annotations

from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.specs.training import TokenizerSpec
from nanochat.recipe.schema import recipe as schema


def derive_tokenizer(section: schema.Tokenizer, given: Derivation) -> TokenizerSpec:
    """Return the specification of the tokenizer stage."""
    fields = section.model_dump(exclude={"source"})
    return TokenizerSpec(source=given.sources[section.source], seed=given.recipe.seed, **fields)
