"""The chat_eval stage: scores a chat model on every suite and computes their mean, ChatCORE."""

from __future__ import annotations

import functools

from nanochat.inference.engine import Engine
from nanochat.plan.specs.evaluation import ChatEvalSpec
from nanochat.plan.specs.job import Job
from nanochat.stages.process.context import StageContext, StageResult
from nanochat.stages.suites.chat_suites import prepare_chat_suite
from nanochat.stages.suites.suite_runner import SuiteRunner, load_model_to_evaluate, sample_section
from nanochat.storage.files import write_text


def run(job: Job, context: StageContext) -> StageResult:
    """Evaluate every suite; write `out/tables/SUITE.jsonl` and `out/samples.md`; return the metrics.

    Metrics: `SUITE` (accuracy), `SUITE.stderr`, `SUITE.centred`, `SUITE.n`, what was cut (`SUITE.prompts_cut`,
    `SUITE.answers_cut`), `chat_core`, `chat_core_centred`.
    """
    spec = job.spec
    assert isinstance(spec, ChatEvalSpec), f"chat_eval got the job of {spec.stage}"
    model, tokenizer = load_model_to_evaluate(context, init_from=spec.init_from)
    engine = Engine(model, tokenizer)
    runner = SuiteRunner(context, len(spec.suites))
    for name, suite in spec.suites.items():
        runner.run(name, functools.partial(prepare_chat_suite, context, engine, name, suite, seed=spec.seed))
    sections = [sample_section(context, name) for name in spec.suites]
    write_text(context.folder.samples, "# Answers\n\n" + "\n".join(sections))
    return runner.stage_result("chat_core")
