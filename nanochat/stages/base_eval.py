"""The base_eval stage: scores a pretrained model by bits per byte, multiple choice and CORE, and samples from it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from nanochat.inference.engine import Engine
from nanochat.inference.sample_texts import sample_continuations
from nanochat.model.dispatch import FastGPT
from nanochat.plan.specs.evaluation import BaseEvalSpec
from nanochat.plan.specs.job import Job
from nanochat.stages.process.context import StageContext, StageResult, indented
from nanochat.stages.suites.base_suites import prepare_base_suite
from nanochat.stages.suites.suite_runner import SuiteRunner, load_model_to_evaluate
from nanochat.storage.files import write_text
from nanochat.tokenizer.bpe import Tokenizer


def run(job: Job, context: StageContext) -> StageResult:
    """Evaluate every suite; write `out/tables/SUITE.jsonl` and `out/samples.md`; return the metrics.

    Metrics: `SUITE` (bits per byte, accuracy, or CORE's centred mean), for accuracies also `SUITE.stderr`,
    `SUITE.centred`, `SUITE.n`, for suites of problems what was cut (`SUITE.prompts_cut`, `SUITE.examples_cut`);
    `base_core` and `base_core_centred`, the means over the multiple-choice suites.
    """
    spec = job.spec
    assert isinstance(spec, BaseEvalSpec), f"base_eval got the job of {spec.stage}"
    model, tokenizer = load_model_to_evaluate(context, init_from=spec.init_from)
    runner = SuiteRunner(context, len(spec.suites))
    for name, suite in spec.suites.items():
        runner.run(name, functools.partial(prepare_base_suite, name, suite, model, tokenizer, context))
    if spec.samples:
        text = sample_text(model, tokenizer, spec.samples, max_tokens=spec.sample_tokens)
        write_text(context.folder.samples, text)
    return runner.stage_result("base_core")


def sample_text(model: FastGPT, tokenizer: Tokenizer, prompts: Sequence[str], *, max_tokens: int) -> str:
    """Return greedy continuations of `prompts` as Markdown."""
    texts = sample_continuations(Engine(model, tokenizer), prompts, max_tokens=max_tokens)
    heading = "# Continuations\n\nGreedy sampling; each block begins with its prompt."
    return "\n\n".join([heading, *map(indented, texts)])
