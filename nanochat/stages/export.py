"""The export stage: writes the model as folders for other programs, and compares their answers with ours.

A folder whose weights are not rounded must give our answers, token by token; otherwise the run ends with an
ExpectationError. Rounded ones are only reported, and so are the scores of suites. All answers are greedy, in float32,
and without the calculator, which other programs do not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import mlx.core as mx

from nanochat.checkpoint.model_folder import load_model_and_tokenizer
from nanochat.errors import ExpectationError
from nanochat.export.folder import CARD_FILE, write_export
from nanochat.export.model_config import Format
from nanochat.export.trial import CHECKED_FORMATS, Answer, Question, ask
from nanochat.export.weights import Quantization
from nanochat.inference.engine import Engine, answer_limit, prompt_limit
from nanochat.plan.specs.evaluation import ExportSpec
from nanochat.plan.specs.job import Job
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext, StageResult, indented
from nanochat.stages.suites.suite_tasks import build_suite_task
from nanochat.storage.files import folder_bytes, new_folder, write_text
from nanochat.tasks.task import Task, grade_completions
from nanochat.tokenizer.chat_format import Conversation, Message, fit_for_completion

_TIE = 1e-3
"""Two tokens whose logits differ by less are equally likely: other programs add in another order."""

Answers = Sequence[Answer]


def run(job: Job, context: StageContext) -> StageResult:
    """Write `out/FORMAT/` for every format and `out/samples.md`; return the metrics.

    Metrics: `FORMAT.bytes`, `FORMAT.same_answers` (the share of prompts with our answer), `FORMAT.SUITE` and `SUITE`
    (our own score) for each suite that is measured.
    """
    spec = job.spec
    assert isinstance(spec, ExportSpec), f"export got the job of {spec.stage}"
    engine = Engine(*load_model_and_tokenizer(context.model_to_start_from(spec.init_from), mx.float32))
    metrics = {}
    for done, form in enumerate(spec.formats):
        context.report_progress(done / (2 * len(spec.formats)), f"writing {form}")
        with new_folder(context.out / form) as scratch:
            write_export(
                scratch, engine.model, engine.tokenizer, form, quantization=_quantization(spec, form), origin=job.origin
            )
        metrics[f"{form}.bytes"] = float(folder_bytes(context.out / form))
    if spec.is_checked:
        metrics |= _try_out(context, spec, engine)
    return StageResult(metrics)


def _quantization(spec: ExportSpec, form: Format) -> Quantization | None:
    if form != "mlx" or spec.bits is None or spec.group_size is None:
        return None
    return Quantization(bits=spec.bits, group_size=spec.group_size)


def _try_out(context: StageContext, spec: ExportSpec, engine: Engine) -> dict[str, float]:
    """Run every format that can be run; write the samples, and what was measured to the cards; return the metrics."""
    tasks = {name: build_suite_task(suite, context, seed=spec.seed) for name, suite in spec.suites.items()}
    prompts = [Conversation((Message("user", text),)) if spec.is_chat else text for text in spec.prompts]
    questions = [Question(prompt=prompt, max_tokens=spec.max_tokens) for prompt in prompts]
    for name, task in tasks.items():
        questions += [_suite_question(engine, task, i, spec.suites[name].max_tokens) for i in range(len(task))]
    ours = _own_answers(engine, questions)
    answers: dict[str, Answers] = {"nanochat": ours}
    forms = [form for form in spec.formats if form in CHECKED_FORMATS]
    for done, form in enumerate(forms):
        context.report_progress(0.5 + done / (2 * len(forms)), f"running {form}")
        device: Literal["cpu", "gpu"] = "cpu" if context.runtime.backend == "cpu" else "gpu"
        answers[form] = ask(context.out / form, form, questions, device=device, should_stop=context.should_stop)
        if _quantization(spec, form) is None:
            for question, own, other in zip(questions[: len(prompts)], ours, answers[form], strict=False):
                _compare(engine, form, question, own, other)
    write_text(context.folder.samples, _samples(spec.prompts, answers))
    same = {f"{form}.same_answers": _same(ours, answers[form], len(prompts)) for form in forms if prompts}
    scores = _scores(tasks, answers, skipped=len(prompts))
    for form in forms:
        card = context.out / form / CARD_FILE
        write_text(card, f"{card.read_text(encoding='utf-8')}\n{_measured(form, same, scores)}")
    return same | {name.removeprefix("nanochat."): value for name, value in scores.items()}


def _suite_question(engine: Engine, task: Task, index: int, max_tokens: int) -> Question:
    """Return a problem without its answer."""
    messages = task[index].conversation.messages[:-1]
    return Question(prompt=Conversation(messages), max_tokens=max_tokens)


def _ids(engine: Engine, question: Question) -> list[int]:
    """Return the ids of a prompt, of which as much is kept as leaves room for an answer."""
    tokenizer, limit = engine.tokenizer, prompt_limit(engine.model.config.sequence_len, question.max_tokens)
    if isinstance(question.prompt, str):
        return [tokenizer.bos_id, *tokenizer.encode(question.prompt)]
    return fit_for_completion(tokenizer, question.prompt, max_tokens=limit).ids


def _own_answers(engine: Engine, questions: Sequence[Question]) -> list[Answer]:
    answers = []
    for question in questions:
        ids = _ids(engine, question)
        (tokens,) = engine.complete([ids], max_tokens=question.max_tokens, use_calculator=False)
        answers.append(Answer(prompt=ids, tokens=tokens, text=engine.tokenizer.decode(tokens)))
    return answers


def _compare(engine: Engine, form: Format, question: Question, own: Answer, other: Answer) -> None:
    """Raise an ExpectationError if another program answers a question in another way than we do."""
    shown = question.prompt if isinstance(question.prompt, str) else question.prompt.messages[-1].text()
    if own.prompt != other.prompt:
        raise ExpectationError(f"the exported tokenizer of `{form}` renders the prompt {shown!r} with other ids")
    context = engine.model.config.sequence_len
    limit = answer_limit(context, len(own.prompt), question.max_tokens)
    theirs = other.tokens[:limit]
    if theirs == own.tokens or _is_tie(engine, own, theirs):
        return
    raise ExpectationError(
        f"the exported model of `{form}` answers the prompt {shown!r} with {other.text!r}, but the original one with "
        f"{own.text!r}"
    )


def _is_tie(engine: Engine, own: Answer, theirs: Sequence[int]) -> bool:
    """Return whether the first tokens that differ are equally likely to our model."""
    common = next((i for i, (a, b) in enumerate(zip(own.tokens, theirs, strict=False)) if a != b), None)
    common = min(len(own.tokens), len(theirs)) if common is None else common
    logits = engine.model(mx.array([[*own.prompt, *own.tokens[:common]]]))[0, -1]
    best = [
        float(logits[tokens[common]]) if common < len(tokens) else max(float(logits[i]) for i in engine.markers.ends)
        for tokens in (own.tokens, theirs)
    ]
    return abs(best[0] - best[1]) < _TIE


def _same(ours: Answers, theirs: Answers, count: int) -> float:
    pairs = zip(ours[:count], theirs[:count], strict=True)
    return sum(own.tokens == other.tokens for own, other in pairs) / count


def _scores(tasks: Mapping[str, Task], answers: Mapping[str, Answers], *, skipped: int) -> dict[str, float]:
    """Return the share of problems solved as `PROGRAM.SUITE`, and their number as `PROGRAM.SUITE.n`."""
    scores = {}
    for program, given in answers.items():
        start = skipped
        for name, task in tasks.items():
            graded = grade_completions(task, [(task[i], given[start + i].text) for i in range(len(task))])
            scores[f"{program}.{name}"] = sum(grade.score for grade in graded) / len(graded)
            scores[f"{program}.{name}.n"] = float(len(graded))
            start += len(task)
    return scores


def _samples(prompts: Sequence[str], answers: Mapping[str, Answers]) -> str:
    blocks = ["# Answers of the exported models"]
    for number, prompt in enumerate(prompts):
        blocks += [f"## Prompt {number + 1}", indented(prompt)]
        for program, given in answers.items():
            blocks += [f"{program}:", indented(given[number].text)]
    return "\n\n".join(blocks) + "\n"


def _measured(form: Format, same: Mapping[str, float], scores: Mapping[str, float]) -> str:
    """Return a section of the card about what was measured with this folder."""
    lines = ["## Measured with this folder", "All answers are greedy and without the calculator.", ""]
    if f"{form}.same_answers" in same:
        lines.append(
            f"- {same[f'{form}.same_answers']:.0%} of the recipe's prompts get the answer of the original model"
        )
    for name in (key.removeprefix(f"{form}.") for key in scores if key.startswith(f"{form}.") and key[-2:] != ".n"):
        ours, theirs, count = scores[f"nanochat.{name}"], scores[f"{form}.{name}"], int(scores[f"{form}.{name}.n"])
        lines.append(f"- `{name}`: {theirs:.3f} here, {ours:.3f} with the original model ({several(count, 'problem')})")
    return "\n".join([lines[0], "", *lines[1:]]) + "\n"
