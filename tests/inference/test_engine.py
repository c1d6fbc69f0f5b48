"""The engine generates what the model would without cache and batch, and applies its own rules."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanochat.errors import RecipeError
from nanochat.inference.engine import Batch, Engine
from nanochat.inference.generation import Request
from nanochat.inference.sampling import Sampling

GREEDY = Sampling(temperature=0.0)


def greedy_reference(model, prompt: list[int], max_tokens: int, ends: set[int], found: list[int]) -> list[int]:
    """Return the greedy continuation without a cache, as far as `found` agrees with it, and one token more.

    The model is causal, so one pass over `found` gives the choice after each of its tokens.
    """
    room = min(max_tokens, model.config.sequence_len - len(prompt))
    choices = np.array(mx.argmax(model(mx.array([[*prompt, *found]]))[0, len(prompt) - 1 :], axis=-1)).tolist()
    right: list[int] = []
    for token, given in zip(choices, [*found, None], strict=True):
        if len(right) >= room or token in ends:
            break
        right.append(token)
        if token != given:
            break
    return right


def some_prompts(count: int, longest: int) -> list[list[int]]:
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, longest, size=count)
    return [[1, *generator.integers(10, 300, size=length).tolist()] for length in lengths]


@pytest.fixture
def ends(tokenizer) -> set[int]:
    return {tokenizer.bos_id, tokenizer.special("<|assistant_end|>")}


@pytest.mark.usefixtures("_each_path")
def test_greedy_generation_equals_generation_without_a_cache(random_model, tokenizer, ends):
    """The answers extend beyond the short window."""
    engine = Engine(random_model, tokenizer)
    for prompt in some_prompts(3, 40):
        found = list(engine.generate(prompt, max_tokens=30, sampling=GREEDY))
        assert found == greedy_reference(random_model, prompt, 30, ends, found)


@pytest.mark.usefixtures("_each_path")
def test_complete_in_batches_equals_single_prompts(random_model, tokenizer, ends):
    """Batches of 4 contain prompts of 2 to 40 tokens, whose answers end at different steps."""
    engine = Engine(random_model, tokenizer)
    prompts = some_prompts(9, 40)
    finished: list[int] = []
    together = engine.complete(prompts, max_tokens=12, use_calculator=False, max_rows=4, on_finished=finished.append)
    for prompt, found in zip(prompts, together, strict=True):
        assert found == greedy_reference(random_model, prompt, 12, ends, found)
    assert finished == sorted(set(finished))
    assert finished[-1] == 9


def test_sampled_batches_equal_single_prompts(random_model, tokenizer):
    """The draws of a prompt depend on its number and the seed, not on the rows that share its batch."""
    engine = Engine(random_model, tokenizer)
    prompts = some_prompts(5, 20)
    settings = {"max_tokens": 8, "sampling": Sampling(top_k=20), "seed": 3}
    assert engine.complete(prompts, max_rows=5, **settings) == engine.complete(prompts, max_rows=1, **settings)
    assert engine.complete(prompts, **settings)[0] == list(engine.generate(prompts[0], **settings))


def test_samples_of_one_prompt_differ_from_their_first_token_on(random_model, tokenizer):
    completions = Engine(random_model, tokenizer).complete([[1, 20, 30]] * 40, max_tokens=4, sampling=Sampling(5.0))
    assert len({completion[0] for completion in completions if completion}) > 10


def test_every_step_draws_independently(chain, tokenizer, monkeypatch):
    """A model that finds every token equally likely does not repeat the same token."""
    model = chain([])
    even = lambda self, tokens, cache, *, vocab_size: mx.zeros((tokens.size, vocab_size))  # noqa: E731
    monkeypatch.setattr(type(model), "next_logits", even)
    (found,) = Engine(model, tokenizer).complete([[1, 50]], max_tokens=20, sampling=Sampling(), use_calculator=False)
    assert len(set(found)) > len(found) / 2


def test_seed_decides_the_samples(random_model, tokenizer):
    engine = Engine(random_model, tokenizer)

    def text(seed: int) -> list[int]:
        return list(engine.generate([1, 20, 30], max_tokens=10, seed=seed))

    assert text(0) == text(0)
    assert text(0) != text(1)


@pytest.mark.parametrize("end", ["<|assistant_end|>", "<|bos|>"])
def test_row_ends_before_its_end_token(chain, tokenizer, end):
    model = chain([50, 51, 52, tokenizer.special(end), 53])
    assert list(Engine(model, tokenizer).generate([1, 50], max_tokens=10, sampling=GREEDY)) == [51, 52]


def test_max_tokens_ends_the_answer_and_the_last_token_is_not_processed(chain, tokenizer):
    """The last token of the prompt is the first step's input."""
    model = chain([50, 51, 52, 53, 54, 55])
    assert list(Engine(model, tokenizer).generate([1, 50], max_tokens=3, sampling=GREEDY)) == [51, 52, 53]
    assert model.fed == [[[1]], [[50]], [[51]], [[52]]]


def test_context_ends_the_answer(chain, tokenizer):
    model = chain([50, 51, 50], sequence_len=8)
    engine = Engine(model, tokenizer)
    assert list(engine.generate([1, 1, 50], max_tokens=99, sampling=GREEDY)) == [51, 50, 51, 50, 51]
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


def calculation(tokenizer, expression: str, result: str = "") -> tuple[list[int], list[int]]:
    """Return the tokens of a calculator call and of its output. No token may occur twice in the call."""
    mark = lambda name: tokenizer.special(f"<|{name}|>")  # noqa: E731
    call = [mark("python_start"), *tokenizer.encode(expression), mark("python_end")]
    assert len(set(call)) == len(call), "a chain needs different tokens"
    return call, [mark("output_start"), *tokenizer.encode(result), mark("output_end")]


def test_engine_forces_the_calculators_result(chain, tokenizer):
    """The tokens of the result follow the call and are given to the model in order. They count as generated tokens."""
    call, forced = calculation(tokenizer, "6*7", "42")
    model = chain([50, *call, 99], [forced[-1], 60, tokenizer.bos_id])
    engine = Engine(model, tokenizer)
    assert list(engine.generate([1, 50], max_tokens=30, sampling=GREEDY)) == [*call, *forced, 60]
    # Reading a token overlaps with the next step, so the token that ends the answer has been processed too.
    assert model.fed[1:] == [[[token]] for token in [50, *call, *forced, 60, tokenizer.bos_id]]
    assert engine.complete([[1, 50]], max_tokens=len(call) + 2) == [[*call, *forced[:2]]]


def test_completion_says_which_tokens_the_model_drew_and_what_ended_it(chain, tokenizer):
    call, forced = calculation(tokenizer, "6*7", "42")
    engine = Engine(chain([50, *call, 99], [forced[-1], 60, tokenizer.bos_id]), tokenizer)
    requests = [
        Request(prompt=[1, 50], max_tokens=most, sampling=GREEDY, number=number) for number, most in ((4, 30), (2, 3))
    ]
    whole, cut = engine.finish(requests)
    assert whole.tokens == [*call, *forced, 60]
    assert whole.is_drawn == [*[True] * len(call), *[False] * len(forced), True]
    assert (whole.end_token, cut.end_token) == (tokenizer.bos_id, None)
    assert cut.tokens == call[:3]


@pytest.mark.parametrize(("expression", "use_calculator"), [("6/0", True), ("abc", True), ("", True), ("6*7", False)])
def test_engine_forces_nothing_for_a_failing_expression_or_without_calculator(
    chain, tokenizer, expression, use_calculator
):
    call, _ = calculation(tokenizer, expression)
    engine = Engine(chain([50, *call, 60, tokenizer.bos_id]), tokenizer)
    assert engine.complete([[1, 50]], max_tokens=30, use_calculator=use_calculator) == [[*call, 60]]


def test_engine_ignores_an_end_marker_without_a_start(chain, tokenizer):
    """A start marker in the prompt does not count."""
    call, _ = calculation(tokenizer, "6*7")
    engine = Engine(chain([*call[-2:], 60, tokenizer.bos_id]), tokenizer)
    assert engine.complete([[1, *call[:-1]]], max_tokens=9) == [[call[-1], 60]]


def test_rows_call_the_calculator_independently(chain, tokenizer):
    """One of two prompts in a batch calls the calculator. The other is unaffected and ends first."""
    call, forced = calculation(tokenizer, "6*7", "42")
    model = chain([50, *call, 99], [forced[-1], 60, tokenizer.bos_id], [70, 71, 72, tokenizer.bos_id])
    assert Engine(model, tokenizer).complete([[1, 50], [1, 70]], max_tokens=30) == [[*call, *forced, 60], [71, 72]]


def test_engine_never_generates_ids_that_the_tokenizer_lacks(chain, tokenizer):
    """A tokenizer trained on little text has fewer tokens than the model, which may prefer one of the others."""
    model = chain([50, tokenizer.vocab_size + 3])
    model.vocab_size = tokenizer.vocab_size + 8
    assert Engine(model, tokenizer).complete([[1, 50]], max_tokens=1)[0][0] < tokenizer.vocab_size


def test_complete_without_prompts_returns_nothing(chain, tokenizer):
    assert Engine(chain([1, 50]), tokenizer).complete([], max_tokens=3) == []


@pytest.mark.usefixtures("_each_path")
def test_rows_join_and_leave_a_running_batch(random_model, tokenizer, ends):
    """Each of 12 rows gets the text that it gets alone, whatever the others do and whenever they come."""
    engine, prompts = Engine(random_model, tokenizer), some_prompts(12, 30)
    batch, completions = Batch(engine), []
    for number, prompt in enumerate(prompts):
        request = Request(prompt=prompt, max_tokens=5 + number % 7, sampling=GREEDY, use_calculator=False)
        completions += batch.add([request])
        for _ in range(number % 3):
            batch.step()
    batch.cancel(completions[7])
    while len(batch):
        batch.step()
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        alone = greedy_reference(random_model, prompt, 5 + number % 7, ends, completion.tokens)
        if number == 7:
            assert completion.tokens == alone[: len(completion.tokens)]
            continue
        assert completion.tokens == alone
        assert completion.ended == ("length" if len(alone) == 5 + number % 7 else "stop")


def test_batch_grows_beyond_the_first_size_of_its_buffers(make_random_model, tokenizer, ends):
    """A row passes 256 positions while another one is short, and a third joins later."""
    model = make_random_model("seed", sequence_len=300, vocab_size=tokenizer.vocab_size, n_layer=2)
    engine, (long, short) = Engine(model, tokenizer), ([1, *[7] * 250], [1, 20, 30])
    batch = Batch(engine)
    request = lambda prompt: Request(prompt=prompt, max_tokens=20, sampling=GREEDY, use_calculator=False)  # noqa: E731
    completions = batch.add([request(long), request(short)])
    for _ in range(10):
        batch.step()
    completions += batch.add([request(short)])
    while len(batch):
        batch.step()
    for prompt, completion in zip((long, short, short), completions, strict=True):
        assert completion.tokens == greedy_reference(model, prompt, 20, ends, completion.tokens)


def test_free_places_of_a_batch_stay_within_the_context(make_random_model, tokenizer):
    """The place of the first row decodes on after its end, by more positions than the model has angles for."""
    model = make_random_model("seed", vocab_size=tokenizer.vocab_size, n_layer=2)
    engine = Engine(model, tokenizer)
    engine.markers.ends = frozenset()
    prompts = [[1] * 30, *([1, 20 + i] for i in range(5))]  # of a context of 32; a batch of five has six places
    together = engine.complete(prompts, max_tokens=32, use_calculator=False)
    assert [len(tokens) for tokens in together] == [2] + [30] * 5
    assert together[1:] == [list(engine.generate(prompt, max_tokens=32, sampling=GREEDY)) for prompt in prompts[1:]]


@pytest.mark.usefixtures("metal_path")
@pytest.mark.parametrize("weights_change", [False, True])
def test_steps_are_compiled_once_and_read_changing_weights_as_inputs(
    random_model, tokenizer, monkeypatch, weights_change
):
    """A compiled step must not hold weights as constants that change between calls."""
    compiled = []
    monkeypatch.setattr(mx, "compile", lambda step, inputs=None: compiled.append(inputs) or step)
    engine = Engine(random_model, tokenizer, weights_change=weights_change)
    for _ in range(3):
        engine.complete(some_prompts(5, 20), max_tokens=6, max_rows=2)
    assert len(compiled) == 1
    assert compiled[0] is (random_model if weights_change else None)


@pytest.mark.usefixtures("metal_path")
def test_prompts_are_read_in_few_shapes_on_a_gpu(random_model, tokenizer, monkeypatch):
    """Prompts of 8 to 30 tokens, one to five of each length, are read together; equal ones are read once."""
    shapes, hidden = set(), type(random_model).hidden

    def recorded(self, idx, cache=None):
        shapes.add(tuple(idx.shape))
        return hidden(self, idx, cache)

    monkeypatch.setattr(type(random_model), "hidden", recorded)
    engine = Engine(random_model, tokenizer)
    for length in range(8, 31):
        engine.complete([[number] * length for number in range(1 + length % 5)] * 2, max_tokens=1)
    assert {shape for shape in shapes if shape[1] > 1} == {(rows, 32) for rows in (1, 2, 3, 4, 6)}


@pytest.mark.gpu
def test_compiled_steps_follow_weights_that_change(make_random_model, tokenizer):
    """The tokens are those of a new engine, whose steps have the weights as constants."""
    model = make_random_model("seed", sequence_len=128, vocab_size=tokenizer.vocab_size)
    model.set_compute_dtype(mx.bfloat16)
    engine, prompts = Engine(model, tokenizer, weights_change=True), [[1, 20, 30], [1, 40], [1] * 10]
    weights, answers = model.named_parameters(), []
    for factor in (1.0, 1.3, 1.6):
        model.set_parameters({name: factor * x for name, x in weights.items()})
        model.cast_matrices(mx.bfloat16)
        answers.append(engine.complete(prompts, max_tokens=40, sampling=Sampling(top_k=20)))
        assert answers[-1] == Engine(model, tokenizer).complete(prompts, max_tokens=40, sampling=Sampling(top_k=20))
    assert answers[0] != answers[1] != answers[2]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sampling", "architecture", "shape"),
    [
        (GREEDY, "current", {}),
        (Sampling(top_k=20), "current", {}),
        (GREEDY, "seed", {"n_layer": 12, "n_embd": 768, "n_head": 6, "n_kv_head": 6, "vocab_size": 32768}),
    ],
    ids=["greedy", "drawn", "greedy, 286M parameters"],
)
def test_compiled_steps_draw_500_tokens_like_uncompiled_ones(
    make_random_model, tokenizer, sampling, architecture, shape
):
    model = make_random_model(architecture, **{"sequence_len": 520, "vocab_size": tokenizer.vocab_size} | shape)
    model.set_compute_dtype(mx.bfloat16)
    model.cast_matrices(mx.bfloat16)
    compiled, plain = Engine(model, tokenizer), Engine(model, tokenizer)
    compiled.markers.ends = plain.markers.ends = frozenset()
    prompts = [[1, 20, 30], [1, 40], [1] * 10]
    tokens = compiled.complete(prompts, max_tokens=500, sampling=sampling)
    mx.disable_compile()
    try:
        assert plain.complete(prompts, max_tokens=500, sampling=sampling) == tokens
    finally:
        mx.enable_compile()
    assert [len(row) for row in tokens] == [500] * 3
