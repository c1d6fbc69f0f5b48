"""Chat tasks: letters compared at the end of the prompt (categorical), or answers written and graded (generative)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from nanochat.errors import StageError
from nanochat.evals.continuations import tokens_per_batch
from nanochat.evals.metrics import pass_at_k, score
from nanochat.evals.results import ExampleRecord, TaskResult
from nanochat.inference.causal_model import CausalModel
from nanochat.inference.engine import Engine
from nanochat.tasks.base import Example, Task, gold_text
from nanochat.tasks.table import TASKS
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat_format import Conversation, render_for_completion

Doubles = npt.NDArray[np.float64]


def evaluate_categorical(
    model: CausalModel,
    tokenizer: Tokenizer,
    task: Task,
    *,
    max_tokens_per_batch: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> TaskResult:
    """Return accuracy and records of a task whose answers are letters, each one token.

    The model is never asked to write: of the example's letters, the one with the largest logit after the prompt is
    its answer, the first of equal ones. A prompt longer than the context keeps its newest turns and tokens.

    Args:
        on_scored: called with the number of examples scored so far.

    Raises:
        StageError: an example without letters, or a letter that is not one token.
    """
    examples = [task[i] for i in range(len(task))]
    prompts = [_prompt(tokenizer, example, model.config.sequence_len) for example in examples]
    letters = [_letter_ids(tokenizer, example) for example in examples]
    found: dict[int, Doubles] = {}
    for number, logprobs in _next_logprobs(model, prompts, letters, max_tokens_per_batch or tokens_per_batch()):
        found[number] = logprobs
        if on_scored is not None:
            on_scored(len(found))
    records = []
    for number, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        assert example.letters is not None, "checked by _letter_ids"
        chosen = example.letters[int(np.argmax(found[number]))]
        record = ExampleRecord(
            index=number,
            task=task.name,
            prompt=tokenizer.decode(prompt),
            output=chosen,
            expected=gold_text(example),
            correct=task.grade(example, chosen),
            options=example.letters,
            logprobs=tuple(found[number].tolist()),
            is_truncated=_is_truncated(tokenizer, example, prompt),
        )
        records.append(record)
    values = [float(record.correct) for record in records]
    return TaskResult(score(values, chance=TASKS[task.name].chance), tuple(records))


def evaluate_generative(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    *,
    num_samples: int = 1,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = 50,
    seed: int = 0,
    max_rows: int = 32,
    on_finished: Callable[[int], None] | None = None,
) -> TaskResult:
    """Return the share of completions that the task grades as right, pass@k, and a record of each completion.

    Accuracy is the mean over problems of the share of their samples that are right, which is pass@1; its standard
    error is over problems. pass@k is estimated for the powers of two up to `num_samples`, and for that.

    Args:
        on_finished: called with the number of completions (problems times samples) finished so far.
    """
    examples = [task[i] for i in range(len(task))]
    context = engine.model.config.sequence_len
    room = min(max_tokens, context // 2)
    prompts = [_prompt(tokenizer, example, context - room) for example in examples]
    completions = engine.complete(
        [prompt for prompt in prompts for _ in range(num_samples)],
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        max_rows=max_rows,
        on_finished=on_finished,
    )
    records: list[ExampleRecord] = []
    passed: list[int] = []
    for number, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        outputs = completions[number * num_samples : (number + 1) * num_samples]
        graded = [_grade(task, tokenizer, example, number, prompt, sample, ids) for sample, ids in enumerate(outputs)]
        records.extend(graded)
        passed.append(sum(record.correct for record in graded))
    estimates = tuple((k, _mean_pass_at(num_samples, passed, k)) for k in _ks(num_samples))
    values = [count / num_samples for count in passed]
    return TaskResult(score(values, chance=TASKS[task.name].chance), tuple(records), estimates)


def _grade(
    task: Task,
    tokenizer: Tokenizer,
    example: Example,
    number: int,
    prompt: Sequence[int],
    sample: int,
    completion: Sequence[int],
) -> ExampleRecord:
    output = tokenizer.decode(completion)
    return ExampleRecord(
        index=number,
        sample=sample,
        task=task.name,
        prompt=tokenizer.decode(prompt),
        output=output,
        expected=gold_text(example),
        correct=task.grade(example, output),
        is_truncated=_is_truncated(tokenizer, example, prompt),
    )


def _ks(num_samples: int) -> list[int]:
    powers = {2**i for i in range(num_samples.bit_length())}
    return sorted(powers | {num_samples}) if num_samples > 1 else []


def _mean_pass_at(num_samples: int, passed: Sequence[int], k: int) -> float:
    return sum(pass_at_k(num_samples, count, k) for count in passed) / len(passed)


def _prompt(tokenizer: Tokenizer, example: Example, max_tokens: int) -> list[int]:
    return render_for_completion(tokenizer, example.conversation, max_tokens=max_tokens)


def _is_truncated(tokenizer: Tokenizer, example: Example, prompt: Sequence[int]) -> bool:
    whole = render_for_completion(tokenizer, Conversation(example.conversation.messages))
    return len(whole) > len(prompt)


def _letter_ids(tokenizer: Tokenizer, example: Example) -> list[int]:
    if not example.letters:
        raise StageError("a categorical example without letters cannot be scored")
    encoded = [tokenizer.encode(letter) for letter in example.letters]
    for letter, ids in zip(example.letters, encoded, strict=True):
        if len(ids) != 1:
            raise StageError(f"the answer {letter!r} is {len(ids)} tokens of this tokenizer; it must be one to compare")
    return [ids[0] for ids in encoded]


def _next_logprobs(
    model: CausalModel, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[tuple[int, Doubles]]:
    """Yield for each prompt, in an order of its own, its number and its candidates' log-probabilities as next token."""
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
