"""Evaluates chat tasks: the model picks a letter at the end of the prompt, or writes an answer that is graded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from nanochat.errors import StageError
from nanochat.evals.continuations import tokens_per_batch
from nanochat.evals.metrics import pass_at_k, score_problems
from nanochat.evals.task_result import ExampleRecord, TaskResult, summarize
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.inference.engine import Engine, answer_limit, prompt_limit
from nanochat.inference.sampling import Sampling
from nanochat.model.dispatch import FastGPT
from nanochat.tasks.table import TASKS
from nanochat.tasks.task import Example, Grade, Task, gold_text, grade_completions
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat_format import FittedPrompt, fit_for_completion

Doubles = npt.NDArray[np.float64]


def evaluate_categorical(
    model: FastGPT,
    tokenizer: Tokenizer,
    task: Task,
    *,
    max_tokens_per_batch: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> TaskResult:
    """Return accuracy and records of a task whose answers are letters, each of them one token.

    The model generates nothing. Its answer is the letter of the example with the largest logit after the prompt; the
    first one wins a tie. A prompt longer than the context keeps its newest turns and tokens.
    `on_scored` is called with the number of examples scored so far. Without `max_tokens_per_batch`, the device decides
    how many tokens one forward pass has.
    """
    examples = [task[i] for i in range(len(task))]
    prompts = [_fit(tokenizer, example, model.config.sequence_len) for example in examples]
    letter_ids = [_letter_ids(tokenizer, example) for example in examples]
    logprobs: dict[int, Doubles] = {}
    max_tokens = max_tokens_per_batch or tokens_per_batch()
    for number, row in _next_logprobs(model, [prompt.ids for prompt in prompts], letter_ids, max_tokens):
        logprobs[number] = row
        if on_scored is not None:
            on_scored(len(logprobs))
    chosen = []
    for number, example in enumerate(examples):
        assert example.letters is not None, "checked by _letter_ids"
        chosen.append(example.letters[int(np.argmax(logprobs[number]))])
    grades = grade_completions(task, list(zip(examples, chosen, strict=True)))
    records = []
    for number, (example, prompt, letter, grade) in enumerate(zip(examples, prompts, chosen, grades, strict=True)):
        record = _record(tokenizer, task, example, number, prompt, letter, grade)
        records.append(replace(record, options=example.letters or (), logprobs=tuple(logprobs[number].tolist())))
    return summarize(tuple(records), chance=TASKS[task.name].chance)


def evaluate_generative(
    engine: Engine,
    task: Task,
    *,
    num_samples: int = 1,
    max_tokens: int = 512,
    sampling: Sampling | None = None,
    seed: int = 0,
    chance: float = 0.0,
    max_rows: int = GENERATED_ROWS,
    on_finished: Callable[[int], None] | None = None,
) -> TaskResult:
    """Return the share of completions that the task grades as right, pass@k, and a record of each completion.

    Accuracy is the mean over problems of the mean score of their samples, which is pass@1 if every sample is right or
    wrong; its standard error is over problems. A guess scores `chance`. A sample passes if its score is 1. pass@k is
    estimated for the powers of two up to `num_samples` and for `num_samples` itself.
    At most `max_rows` are generated at a time. `on_finished` is called with the number of completions (problems times
    samples) finished so far.
    """
    examples, tokenizer = [task[i] for i in range(len(task))], engine.tokenizer
    context = engine.model.config.sequence_len
    prompts = [_fit(tokenizer, example, prompt_limit(context, max_tokens)) for example in examples]
    completions = engine.complete(
        [prompt.ids for prompt in prompts for _ in range(num_samples)],
        max_tokens=max_tokens,
        sampling=sampling,
        seed=seed,
        max_rows=max_rows,
        on_finished=on_finished,
    )
    outputs = [tokenizer.decode(completion) for completion in completions]
    answers = [(examples[number // num_samples], output) for number, output in enumerate(outputs)]
    # Grading may run programs, for minutes. The callback lets a signal stop it.
    grades = grade_completions(task, answers, on_graded=on_finished and (lambda _: on_finished(len(answers))))
    records = []
    for number, (completion, output, grade) in enumerate(zip(completions, outputs, grades, strict=True)):
        index, sample = divmod(number, num_samples)
        prompt = prompts[index]
        record = _record(tokenizer, task, examples[index], index, prompt, output, grade)
        hit_limit = len(completion) == answer_limit(context, len(prompt.ids), max_tokens)
        records.append(replace(record, sample=sample, hit_limit=hit_limit))
    starts = range(0, len(records), num_samples)
    means = [math.fsum(grade.score for grade in grades[start : start + num_samples]) / num_samples for start in starts]
    passed = [sum(record.correct for record in records[start : start + num_samples]) for start in starts]
    return TaskResult(score_problems(means, chance=chance), tuple(records), _estimate_pass_at(num_samples, passed))


def _estimate_pass_at(num_samples: int, passed: Sequence[int]) -> tuple[tuple[int, float], ...]:
    if num_samples == 1:
        return ()
    ks = {2**i for i in range(num_samples.bit_length())} | {num_samples}
    return tuple((k, sum(pass_at_k(num_samples, count, k) for count in passed) / len(passed)) for k in sorted(ks))


def _fit(tokenizer: Tokenizer, example: Example, max_tokens: int) -> FittedPrompt:
    return fit_for_completion(tokenizer, example.conversation, max_tokens=max_tokens)


def _record(
    tokenizer: Tokenizer, task: Task, example: Example, index: int, prompt: FittedPrompt, output: str, grade: Grade
) -> ExampleRecord:
    return ExampleRecord(
        index=index,
        task=task.name,
        prompt=tokenizer.decode(prompt.ids),
        output=output,
        expected=gold_text(example),
        correct=grade.is_right,
        score=None if grade.score in (0.0, 1.0) else grade.score,
        problem=grade.problem,
        is_truncated=prompt.is_cut,
    )


def _letter_ids(tokenizer: Tokenizer, example: Example) -> list[int]:
    assert example.letters, "a categorical task gives each example its letters"
    encoded = [tokenizer.encode(letter) for letter in example.letters]
    for letter, ids in zip(example.letters, encoded, strict=True):
        if len(ids) != 1:
            raise StageError(
                f"the answer {letter!r} is {len(ids)} tokens with this tokenizer; answers are compared as single tokens"
            )
    return [ids[0] for ids in encoded]


def _next_logprobs(
    model: FastGPT, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[tuple[int, Doubles]]:
    """Yield the number of each prompt, longest first, with its candidates' log-probabilities as the next token."""
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]), reverse=True)
    while order:
        longest = len(prompts[order[0]])
        size = max(1, max_tokens // longest)
        batch, order = order[:size], order[size:]
        padded = np.zeros((len(batch), longest), dtype=np.int32)
        for row, number in zip(padded, batch, strict=True):
            row[: len(prompts[number])] = prompts[number]
        hidden = model.hidden(mx.array(padded))
        last = mx.array([len(prompts[number]) - 1 for number in batch])
        logits = model.logits(hidden[mx.arange(len(batch)), last])
        logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), dtype=np.float64)
        for row, number in zip(logprobs, batch, strict=True):
            yield number, row[list(candidates[number])]
