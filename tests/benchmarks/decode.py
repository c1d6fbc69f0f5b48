"""Decoding speed through the engine by batch and context, memory over a long answer, and mlx-lm beside it.

    python tests/benchmarks/decode.py [--device cpu|gpu] [--shape quickstart|d6|speedrun] [--rounds 5] [--tokens 64]
        [--architecture seed] [--rows 1 32] [--contexts 512 1900] [--sampling greedy|chat] [--memory-tokens 0]

Measures what chat, server and evaluations use: `inference.engine.Batch`, with the calculator on; random models answer
until they are stopped. With mlx-lm installed (`pip install mlx-lm`), the `portable` model of the same shape and weights
decodes through it in alternating rounds, in each way that it offers: `generate_step` (one row), `BatchGenerator`
(several), and a loop over its model that submits a step before it reads the tokens of the last one. Prints for each
case the median and range of tokens per second, and the ratios to the fastest of these ways; on a CPU also per CPU
second, which other programs disturb less. `--memory-tokens` decodes long answers and prints the memory after each
eighth; with `--rows` alone, nothing else is measured.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy reads it when it is imported

import numpy as np
from parts.measuring import describe_machine, median_and_range, option_parser

from nanochat import runtime
from nanochat.model.architectures import VARIANTS, Architecture
from nanochat.model.config import GPTConfig

if TYPE_CHECKING:  # MLX is imported after `runtime.prepare`
    import mlx.core as mx

    from nanochat.inference.engine import Batch, Engine
    from nanochat.model.dispatch import FastGPT

TEMPERATURE, TOP_K = 0.8, 50
"""`--sampling chat`: the defaults of chat."""

SHAPES: dict[str, dict[str, int]] = {
    "quickstart": {"n_layer": 4, "n_embd": 128, "n_head": 2, "n_kv_head": 2, "vocab_size": 2048},
    "d6": {"n_layer": 6, "n_embd": 384, "n_head": 3, "n_kv_head": 3},
    "speedrun": {},
}


class Rates(NamedTuple):
    """Tokens per second of the clock, and of the CPU in all threads."""

    wall: float
    cpu: float


def make_model(shape: str, architecture: Architecture, dtype: mx.Dtype) -> FastGPT:
    """Return a model of random weights, output projections included, as inference loads it."""
    import mlx.core as mx

    from nanochat.model.dispatch import FastGPT

    pattern = VARIANTS[architecture].default_window_pattern
    model = FastGPT(GPTConfig(architecture=architecture, window_pattern=pattern, sequence_len=2048, **SHAPES[shape]))
    model.initialise(mx.random.key(0))
    drawn = {
        name: mx.random.normal(x.shape, scale=x.shape[-1] ** -0.5) if name.endswith("c_proj.weight") else x
        for name, x in model.named_parameters().items()
    }
    model.set_parameters(drawn)
    model.set_compute_dtype(dtype)
    model.cast_matrices(dtype)
    mx.eval(model.named_parameters())
    return model


def start_batch(engine: Engine, rows: int, context: int, tokens: int, *, draws: bool = False) -> Batch:
    """Return a batch that has read its prompts and decoded its first tokens."""
    from nanochat.inference.engine import Batch
    from nanochat.inference.generation import Request
    from nanochat.inference.sampling import Sampling

    engine.markers.ends = frozenset()  # a random model may draw the end of its answer
    prompts = np.random.default_rng(0).integers(10, 290, (rows, context)).tolist()
    batch, sampling = Batch(engine), Sampling(TEMPERATURE, TOP_K) if draws else Sampling(temperature=0.0)
    batch.add([Request(prompt=prompt, max_tokens=tokens + 9, sampling=sampling) for prompt in prompts])
    for _ in range(8):
        batch.step()
    return batch


def our_rates(engine: Engine, rows: int, context: int, tokens: int, *, draws: bool) -> Rates:
    batch = start_batch(engine, rows, context, tokens, draws=draws)
    return _rates(batch.step, tokens, rows)


def _rates(step: Callable[[], object], count: int, rows: int) -> Rates:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Rates(rows * count / wall, rows * count / cpu)


def mlx_lm_model(model: FastGPT) -> Any:
    """Return mlx-lm's model with the weights of a `portable` model."""
    from mlx_lm.models.nanochat import Model, ModelArgs

    config = model.config
    theirs = Model(
        ModelArgs(
            hidden_size=config.n_embd,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            vocab_size=config.padded_vocab_size,
            max_position_embeddings=config.sequence_len,
            intermediate_size=4 * config.n_embd,
        )
    )
    theirs.load_weights(list(model.named_parameters().items()))
    return theirs


def mlx_lm_rates(theirs: Any, rows: int, context: int, tokens: int, *, way: str, draws: bool) -> Rates:
    """Return the rates of one of `mlx_lm_ways`."""
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator, generate_step
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.sample_utils import make_sampler

    likeliest: Callable[[mx.array], mx.array] = partial(mx.argmax, axis=-1)
    sampler = make_sampler(TEMPERATURE, top_k=TOP_K) if draws else likeliest
    prompts = np.random.default_rng(0).integers(10, 290, (rows, context))

    def batch_generator() -> Iterator[object]:
        generator = BatchGenerator(theirs, max_tokens=tokens + 64, sampler=sampler, prefill_batch_size=rows)
        generator.insert(prompts.tolist())
        while True:
            _, answers = generator.next()
            if len(answers) == rows:
                yield answers

    def loop() -> Iterator[object]:
        def choose(idx: mx.array) -> mx.array:
            logits: mx.array = theirs(idx, cache=cache)[:, -1]
            return sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True)) if draws else likeliest(logits)

        cache = make_prompt_cache(theirs)
        token = choose(mx.array(prompts))
        while True:
            following = choose(token[:, None])
            mx.async_eval(following)  # type: ignore[no-untyped-call]
            yield token.tolist()
            token = following

    steps: dict[str, Callable[[], Iterator[object]]] = {
        "generate_step": lambda: generate_step(mx.array(prompts[0]), theirs, max_tokens=tokens + 64, sampler=sampler),
        "BatchGenerator": batch_generator,
        "loop": loop,
    }
    chosen = steps[way]()
    for _ in range(8):
        next(chosen)
    return _rates(lambda: next(chosen), tokens, rows)


def mlx_lm_ways(rows: int) -> tuple[str, ...]:
    return ("generate_step" if rows == 1 else "BatchGenerator", "loop")


def print_memory(engine: Engine, tokens: int) -> None:
    """Print what MLX holds after each eighth of `tokens` tokens, decoded as answers that fill the context."""
    import mlx.core as mx

    for eighth in range(1, 9):
        left = tokens // 8
        while left > 0:
            length = min(left, engine.model.config.sequence_len - 64)
            batch = start_batch(engine, 1, 32, length)
            for _ in range(length - 8):
                batch.step()
            left -= length
        held = f"arrays {mx.get_active_memory() / 2**20:,.1f} MiB, cached {mx.get_cache_memory() / 2**20:,.1f} MiB"
        print(f"after {eighth * (tokens // 8):,} tokens: {held}", flush=True)


def measure(rates: dict[str, Callable[[], Rates]], rounds: int) -> dict[str, list[Rates]]:
    """Return the rates of each system, measured in alternating rounds after one to warm up."""
    measured: dict[str, list[Rates]] = {name: [] for name in rates}
    for number in range(rounds + 1):
        for name, rate in rates.items():
            value = rate()
            if number:
                measured[name].append(value)
    return measured


def main() -> None:
    parser = option_parser(__doc__, rounds=5, tokens=64, memory_tokens=0)
    parser.add_argument("--shape", choices=SHAPES, default="quickstart")
    parser.add_argument("--architecture", choices=tuple(VARIANTS), default="seed")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 1900])
    parser.add_argument("--sampling", choices=("greedy", "chat"), default="greedy")
    options = parser.parse_args()
    draws = options.sampling == "chat"
    chosen = runtime.prepare(device=options.device)
    import mlx.core as mx

    from nanochat.inference.engine import Engine
    from nanochat.model.device import select_device
    from nanochat.tokenizer import bpe

    select_device(chosen.backend)
    print(describe_machine(chosen))
    dtype = mx.bfloat16 if chosen.dtype == "bfloat16" else mx.float32
    tokenizer = bpe.train(["abc abd 0123456789"], vocab_size=300, max_chars=1000, max_document_chars=1000)
    engine = Engine(make_model(options.shape, options.architecture, dtype), tokenizer)
    systems = {"ours": engine}
    theirs = None
    if importlib.util.find_spec("mlx_lm") is not None:
        portable = make_model(options.shape, "portable", dtype)
        systems["ours, portable"], theirs = Engine(portable, tokenizer), mlx_lm_model(portable)
    for rows in options.rows:
        for context in options.contexts:
            case = (rows, context, options.tokens)
            rates: dict[str, Callable[[], Rates]] = {
                name: partial(our_rates, system, *case, draws=draws) for name, system in systems.items()
            }
            ways = mlx_lm_ways(rows) if theirs is not None else ()
            rates |= {f"mlx-lm, {way}": partial(mlx_lm_rates, theirs, *case, way=way, draws=draws) for way in ways}
            measured = measure(rates, options.rounds)
            clocks = {"wall": "tokens/s"} | ({"cpu": "per CPU second"} if chosen.backend == "cpu" else {})
            for clock, unit in clocks.items():
                of_clock = {name: [getattr(rates, clock) for rates in values] for name, values in measured.items()}
                best = max((statistics.median(v) for name, v in of_clock.items() if name not in systems), default=None)
                for name, values in of_clock.items():
                    ratio = f", {statistics.median(values) / best:.2f} of mlx-lm's best" if best else ""
                    label = f"rows {rows:>2}, context {context:>5}, {name:<22}"
                    print(f"{label} {median_and_range(values, 0)} {unit}{ratio}", flush=True)
    if options.memory_tokens:
        print_memory(engine, options.memory_tokens)


if __name__ == "__main__":
    main()
