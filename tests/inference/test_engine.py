"""The engine generates what the model would without cache and batch, and applies its own rules."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanochat.errors import RecipeError
from nanochat.inference.engine import Engine, Step


def greedy_reference(model, prompt: list[int], max_tokens: int, ends: set[int]) -> list[int]:
    """Return a greedy continuation computed without a cache, from the whole sequence for every token."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        if len(tokens) >= model.config.sequence_len:
            break
        token = int(mx.argmax(model(mx.array([tokens]))[0, -1]).item())
        if token in ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def row_tokens(steps: list[Step], row: int = 0) -> list[int]:
    return [step.tokens[row] for step in steps if step.tokens[row] is not None]


def some_prompts(count: int, longest: int) -> list[list[int]]:
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, longest, size=count)
    return [[1, *generator.integers(10, 300, size=length).tolist()] for length in lengths]


@pytest.fixture
def ends(tokenizer) -> set[int]:
    return {tokenizer.bos_id, tokenizer.special("<|assistant_end|>")}


def test_greedy_generation_equals_generation_without_a_cache(random_model, tokenizer, ends):
    """The answers extend beyond the short window."""
    engine = Engine(random_model, tokenizer)
    for prompt in some_prompts(3, 40):
        steps = list(engine.generate(prompt, max_tokens=30, temperature=0.0, use_calculator=False))
        assert row_tokens(steps) == greedy_reference(random_model, prompt, 30, ends)


def test_complete_in_batches_equals_single_prompts(random_model, tokenizer, ends):
    """Batches of 4 contain prompts of 2 to 40 tokens, whose answers end at different steps."""
    engine = Engine(random_model, tokenizer)
    prompts = some_prompts(9, 40)
    finished: list[int] = []
    together = engine.complete(prompts, max_tokens=12, use_calculator=False, max_rows=4, on_finished=finished.append)
    assert together == [greedy_reference(random_model, prompt, 12, ends) for prompt in prompts]
    assert finished == list(range(1, 10))


def test_sampled_batches_equal_single_prompts(random_model, tokenizer):
    """The draws of a prompt depend on its number and the seed, not on the rows that share its batch."""
    engine = Engine(random_model, tokenizer)
    prompts = some_prompts(5, 20)
    settings = {"max_tokens": 8, "temperature": 1.0, "top_k": 20, "seed": 3}
    assert engine.complete(prompts, max_rows=5, **settings) == engine.complete(prompts, max_rows=1, **settings)
    alone = list(engine.generate(prompts[0], **settings))
    assert engine.complete(prompts, **settings)[0] == row_tokens(alone)


def test_samples_of_one_prompt_differ_from_their_first_token_on(random_model, tokenizer):
    engine = Engine(random_model, tokenizer)
    first = next(engine.generate([1, 20, 30], num_samples=40, max_tokens=4, temperature=5.0))
    assert len(set(first.tokens)) > 10


def test_every_step_draws_independently(chain, tokenizer, monkeypatch):
    """A model that finds every token equally likely does not repeat the same token."""
    model = chain([])
    monkeypatch.setattr(type(model), "logits", lambda self, hidden: mx.zeros((*hidden.shape[:-1], self.vocab_size)))
    steps = list(Engine(model, tokenizer).generate([1, 50], max_tokens=20, use_calculator=False))
    assert len(set(row_tokens(steps))) > len(steps) / 2


def test_seed_decides_the_samples(random_model, tokenizer):
    engine = Engine(random_model, tokenizer)

    def text(seed: int) -> list[Step]:
        return list(engine.generate([1, 20, 30], num_samples=3, max_tokens=10, temperature=1.0, seed=seed))

    assert text(0) == text(0)
    assert text(0) != text(1)
    assert row_tokens(text(0), 0) != row_tokens(text(0), 1)


@pytest.mark.parametrize("end", ["<|assistant_end|>", "<|bos|>"])
def test_row_ends_before_its_end_token(chain, tokenizer, end):
    model = chain([50, 51, 52, tokenizer.special(end), 53])
    steps = list(Engine(model, tokenizer).generate([1, 50], max_tokens=10, temperature=0.0))
    assert steps == [Step([51], [False]), Step([52], [False])]


def test_max_tokens_ends_the_answer_and_the_last_token_is_not_processed(chain, tokenizer):
    model = chain([50, 51, 52, 53, 54, 55])
    steps = list(Engine(model, tokenizer).generate([1, 50], max_tokens=3, temperature=0.0))
    assert row_tokens(steps) == [51, 52, 53]
    assert model.fed == [[[1, 50]], [[51]], [[52]]]


def test_context_ends_the_answer(chain, tokenizer):
    model = chain([50, 51, 50], sequence_len=8)
    engine = Engine(model, tokenizer)
    assert row_tokens(list(engine.generate([1, 1, 50], max_tokens=99, temperature=0.0))) == [51, 50, 51, 50, 51]
    assert engine.complete([[1, 1, 50], [50]], max_tokens=99) == [[51, 50, 51, 50, 51], [51, 50, 51, 50, 51, 50, 51]]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [([], 5, "empty prompt"), ([1] * 8, 5, "context of 8"), ([1], 0, "max_tokens is 0")],
)
def test_engine_refuses_requests_without_room(chain, tokenizer, prompt, max_tokens, message):
    engine = Engine(chain([1, 50], sequence_len=8), tokenizer)
    with pytest.raises(RecipeError, match=message):
        list(engine.generate(prompt, max_tokens=max_tokens))
    with pytest.raises(RecipeError, match=message):
        engine.complete([prompt], max_tokens=max_tokens)


def calculation(tokenizer, expression: str) -> tuple[list[int], int, int]:
    """Return the tokens of a calculator call and both markers. No token may occur twice in it."""
    start, end = tokenizer.special("<|python_start|>"), tokenizer.special("<|python_end|>")
    tokens = [start, *tokenizer.encode(expression), end]
    assert len(set(tokens)) == len(tokens), "a chain needs different tokens"
    return tokens, start, end


def test_engine_forces_the_calculators_result(chain, tokenizer):
    """The tokens of the result follow the call, are marked as forced, and are given to the model in order."""
    call, _, python_end = calculation(tokenizer, "6*7")
    output_start, output_end = tokenizer.special("<|output_start|>"), tokenizer.special("<|output_end|>")
    forced = [output_start, *tokenizer.encode("42"), output_end]
    model = chain([50, *call, 99], [output_end, 60, tokenizer.bos_id])
    steps = list(Engine(model, tokenizer).generate([1, 50], max_tokens=30, temperature=0.0))
    assert row_tokens(steps) == [*call, *forced, 60]
    assert [step.forced[0] for step in steps] == [False] * len(call) + [True] * len(forced) + [False]
    assert model.fed[1:] == [[[token]] for token in [*call, *forced, 60]]
    assert python_end in row_tokens(steps)


def test_forced_tokens_count_towards_max_tokens(chain, tokenizer):
    call, _, _ = calculation(tokenizer, "6*7")
    model = chain([50, *call, 99])
    steps = list(Engine(model, tokenizer).generate([1, 50], max_tokens=len(call) + 2, temperature=0.0))
    assert len(row_tokens(steps)) == len(call) + 2
    assert [step.forced[0] for step in steps][-2:] == [True, True]


@pytest.mark.parametrize("expression", ["6/0", "abc", ""])
def test_engine_forces_nothing_for_a_failing_expression(chain, tokenizer, expression):
    call, _, _ = calculation(tokenizer, expression)
    model = chain([50, *call, 60, tokenizer.bos_id])
    steps = list(Engine(model, tokenizer).generate([1, 50], max_tokens=30, temperature=0.0))
    assert row_tokens(steps) == [*call, 60]
    assert not any(step.forced[0] for step in steps)


def test_engine_works_without_the_calculator(chain, tokenizer):
    call, _, _ = calculation(tokenizer, "6*7")
    model = chain([50, *call, 60, tokenizer.bos_id])
    steps = list(Engine(model, tokenizer).generate([1, 50], max_tokens=30, temperature=0.0, use_calculator=False))
    assert row_tokens(steps) == [*call, 60]


def test_engine_ignores_an_end_marker_without_a_start(chain, tokenizer):
    """A start marker in the prompt does not count."""
    call, start, end = calculation(tokenizer, "6*7")
    model = chain([call[-2], end, 60, tokenizer.bos_id])
    steps = list(Engine(model, tokenizer).generate([1, *call[:-1]], max_tokens=9, temperature=0.0))
    assert row_tokens(steps) == [end, 60]
    assert start not in row_tokens(steps)


def test_rows_call_the_calculator_independently(chain, tokenizer):
    """One of two prompts in a batch calls the calculator. The other is unaffected and ends first."""
    call, _, _ = calculation(tokenizer, "6*7")
    output_end = tokenizer.special("<|output_end|>")
    model = chain([50, *call, 99], [output_end, 60, tokenizer.bos_id], [70, 71, 72, tokenizer.bos_id])
    engine = Engine(model, tokenizer)
    forced = [tokenizer.special("<|output_start|>"), *tokenizer.encode("42"), output_end]
    assert engine.complete([[1, 50], [1, 70]], max_tokens=30) == [[*call, *forced, 60], [71, 72]]


def test_engine_never_generates_ids_that_the_tokenizer_lacks(chain, tokenizer):
    """A tokenizer trained on little text has fewer tokens than the model, which may prefer one of the others."""
    model = chain([50, tokenizer.vocab_size + 3])
    model.vocab_size = tokenizer.vocab_size + 8
    steps = list(Engine(model, tokenizer).generate([1, 50], max_tokens=1, temperature=0.0))
    assert row_tokens(steps)[0] < tokenizer.vocab_size


def test_complete_without_prompts_returns_nothing(chain, tokenizer):
    assert Engine(chain([1, 50]), tokenizer).complete([], max_tokens=3) == []
