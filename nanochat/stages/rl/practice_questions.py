"""The questions that the model practises on: the tasks of the recipe in a fixed, shuffled order."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanochat.inference.engine import prompt_limit
from nanochat.plan.specs.training import RlSpec
from nanochat.plan.text.mixture_notes import MixturePart, count_parts, describe_mixture, weight_warnings
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext, derive_seed
from nanochat.stages.suites.suite_tasks import build_suite_task, open_suite_task
from nanochat.tasks.mixture import TaskMixture
from nanochat.tasks.task import Task
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat_format import fit_for_completion
from nanochat.train.rollouts import Prompt


@dataclass(frozen=True)
class Questions:
    """A sequence of prompts, which begins again after its last one."""

    mixture: TaskMixture
    order: list[int]
    tokenizer: Tokenizer
    max_prompt_tokens: int

    def __len__(self) -> int:
        return len(self.order)

    def prompt(self, number: int, *, place: str) -> Prompt:
        """Return prompt `number`, counted from 0 over all epochs. `place` says where it is needed, for messages."""
        task, index = self.mixture.locate(self.order[number % len(self.order)])
        example = task[index]
        fitted = fit_for_completion(self.tokenizer, example.conversation, max_tokens=self.max_prompt_tokens)
        return Prompt(task, example, fitted.ids, f"{place}, question {index + 1} of {task.name}")


def read_questions(spec: RlSpec, context: StageContext, tokenizer: Tokenizer, *, context_len: int) -> Questions:
    """Read the data of the recipe's tasks and return their questions."""
    tasks = []
    for name, item in spec.data.items():
        context.report_progress(0.0, f"reading {name}")
        seed = derive_seed(spec.seed, "rl", name)
        tasks.append(open_suite_task(item.suite, context, name, section="rl.data", seed=seed))
    parts = [
        MixturePart(name=name, examples=len(task), weight=item.weight)
        for task, (name, item) in zip(tasks, spec.data.items(), strict=True)
    ]
    context.log_line(describe_mixture(parts, "question"))
    for warning in weight_warnings(parts, "rl.data", "question", can_repeat=False):
        context.notify_user(f"warning: {warning}")
    seed = derive_seed(spec.seed, "rl", "questions")
    mixture = TaskMixture(list(zip(tasks, count_parts(parts), strict=True)), seed=seed)
    order = random.Random(seed).sample(range(len(mixture)), len(mixture))
    return Questions(mixture, order, tokenizer, prompt_limit(context_len, spec.max_tokens))


def warn_of_practised_questions(spec: RlSpec, context: StageContext, questions: Questions) -> None:
    """Warn the user of held-out questions that the model also practises on, for example if a file has no splits."""
    practised = {text for task, _ in questions.mixture.tasks for text in _texts(task)}
    for name, suite in spec.held_out.items():
        held_out = _texts(build_suite_task(suite, context, seed=spec.seed))
        if count := sum(text in practised for text in held_out):
            context.notify_user(
                f"{name}: the model also practises {count:,} of {several(len(held_out), 'held-out question')}, so "
                "its score does not show how it answers new ones; give `rl.data` and `rl.held_out` different "
                "questions, for example with `split`"
            )


def _texts(task: Task) -> list[str]:
    """Return the text of each question, without what comes before it."""
    return [task[index].conversation.messages[-2].text() for index in range(len(task))]
