"""Jobs, contexts and documents in a temporary folder."""

from __future__ import annotations

import pytest

from nanochat.data.sources import SourceSpec
from nanochat.plan.specs import ExecutionSpec, Job, TokenizerSpec
from nanochat.runtime import Runtime
from nanochat.stages import tokenizer
from nanochat.stages.process.context import StageContext

CPU = Runtime(backend="cpu", dtype="float32", blas="any", threads=1)


@pytest.fixture
def make_context(tmp_path):
    """A function that creates a stage folder in the test's folder and returns its context."""

    def make(spec, *, name="stage", upstream=None, should_stop=lambda: False, **execution):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        job = Job(spec=spec, execution=ExecutionSpec(**execution), stage_dir=str(folder), upstream=upstream or {})
        return StageContext(job, base=tmp_path / "base", runtime=CPU, should_stop=should_stop)

    return make


@pytest.fixture
def documents(tmp_path):
    """A source of forty documents of a few lines each, a quarter of them held out."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(40):
        lines = [f"line {j} of document {i}: the value is {(i * 37 + j * 11) % 100}" for j in range(3 + i % 5)]
        (folder / f"{i:02d}.txt").write_text("\n".join(lines))
    return SourceSpec(name="documents", path=(str(folder / "*.txt"),), validation_hash_frac=0.25)


@pytest.fixture
def tokenizer_spec(documents):
    return TokenizerSpec(source=documents, vocab_size=300, max_chars=100_000, max_document_chars=10_000, seed=1)


@pytest.fixture
def upstream(make_context, tokenizer_spec):
    """The output of a tokenizer stage on the documents, as input of a later stage."""
    context = make_context(tokenizer_spec, name="tokenizer")
    tokenizer.run(context.job, context)
    return {"tokenizer": str(context.out)}
