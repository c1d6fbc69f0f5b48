"""The three requests of lm-evaluation-harness, answered by our engine: log-likelihoods, and generated text.

A continuation is tokenized and scored as in our own multiple-choice tasks: context and continuation are one text, and
what differs from the context's own tokens is scored. A row longer than the model's context loses its first tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval.api.model import LM

from nanochat.evals.choice_tasks import option_continuations
from nanochat.evals.continuations import Continuation, score_continuations
from nanochat.inference.engine import Engine, fit_text, prompt_limit
from nanochat.inference.sampling import Sampling
from nanochat.tasks.multiple_choice.base_models import ChoiceItem

DEFAULT_MAX_TOKENS = 256
"""The library's default for tasks that do not say how long an answer may be."""


class HarnessModel(LM):  # type: ignore[misc]
    """Our engine behind the library's interface.

    `failure` is the exception that a request raised, which the library may hide.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_tokens_per_batch: int | None = None,
        max_rows: int,
        on_scored: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self.cut: set[str] = set()
        """The contexts that lost their first tokens."""
        self._engine = engine
        self._max_tokens_per_batch = max_tokens_per_batch
        self._max_rows = max_rows
        self._on_scored = on_scored

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) the log-probability in nats, and whether every token is likeliest."""
        groups = []
        for context, group in itertools.groupby(requests, key=lambda request: request.args[0]):
            item = ChoiceItem(context, tuple(request.args[1] for request in group), 0)
            groups.append(option_continuations(self._engine.tokenizer, item, max_tokens=self._context_len))
            if any(row.lost for row in groups[-1]):
                self.cut.add(context)
        return [(score.logprob, score.is_greedy) for scores in self._score(groups) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-probability of each whole text in nats.

        A long text is scored in windows that fill the context. Every token is scored once, and the last window reaches
        back as far as the context allows.
        """
        tokenizer = self._engine.tokenizer
        groups = []
        for (text,) in (request.args for request in requests):
            tokens = [tokenizer.bos_id, *tokenizer.encode(text)]
            groups.append(list(_windows(tokens, self._context_len)))
        return [sum(score.logprob for score in scores) for scores in self._score(groups)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the continuation of each context up to the first of its stop texts."""
        try:
            return self._generate([request.args for request in requests])
        except BaseException as error:
            self.failure = error
            raise

    @property
    def _context_len(self) -> int:
        return self._engine.model.config.sequence_len

    def _score(self, groups: Sequence[Sequence[Continuation]]) -> list[list[Any]]:
        try:
            return score_continuations(
                self._engine.model, groups, max_tokens_per_batch=self._max_tokens_per_batch, on_scored=self._on_scored
            )
        except BaseException as error:
            self.failure = error
            raise

    def _generate(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Generate the texts of requests. Those with equal settings are generated together."""
        texts: dict[int, str] = {}
        settings = [_settings(arguments) for _, arguments in requests]
        for setting in dict.fromkeys(settings):
            numbers = [number for number, other in enumerate(settings) if other == setting]
            max_tokens, sampling = setting
            limit = prompt_limit(self._context_len, max_tokens)
            prompts = []
            for number in numbers:
                context = requests[number][0]
                prompt = fit_text(self._engine.tokenizer, context, max_tokens=limit)
                if prompt.is_cut:
                    self.cut.add(context)
                prompts.append(prompt.ids)
            completions = self._engine.complete(
                prompts,
                max_tokens=max_tokens,
                sampling=sampling,
                use_calculator=False,
                max_rows=self._max_rows,
                on_finished=self._on_scored,
            )
            for number, completion in zip(numbers, completions, strict=True):
                texts[number] = _until(self._engine.tokenizer.decode(completion), requests[number][1])
        return [texts[number] for number in range(len(requests))]


def _windows(tokens: Sequence[int], longest: int) -> Iterator[Continuation]:
    """Yield rows with at most `longest` inputs that together score every token but the first one once."""
    row = longest + 1  # nothing follows the last token, so the model does not read it
    for start in range(1, len(tokens), longest):
        end = min(start + longest, len(tokens))
        begin = max(0, end - row)
        yield Continuation(tuple(tokens[begin:end]), start - begin)


def _settings(arguments: dict[str, Any]) -> tuple[int, Sampling]:
    """Return how many tokens to generate, and how, from the task's generation arguments."""
    max_tokens = arguments.get("max_gen_toks") or arguments.get("max_tokens") or arguments.get("max_new_tokens")
    temperature = float(arguments.get("temperature") or 0.0) if arguments.get("do_sample") else 0.0
    top_k = arguments.get("top_k") if temperature else None
    return int(max_tokens or DEFAULT_MAX_TOKENS), Sampling(temperature, int(top_k) if top_k else None)


def _until(text: str, arguments: dict[str, Any]) -> str:
    stops = arguments.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop, 1)[0] if stop else text
    return text
