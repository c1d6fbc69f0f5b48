"""Decoding speed on a GPU at the real size (286M parameters, bfloat16): batches of 1 and 32, prefill, and memory.

    python tests/benchmarks/gpu_decode.py [--steps 200] [--memory-tokens 4000]

Prints tokens per second of decoding after 512 tokens of context, next to an upper bound by memory traffic: all matrices
and the cache are read once per token, at the bandwidth that a large copy reaches in the same run. Then tokens per
second of prefill, and the memory held after each eighth of a long generation.
"""

from __future__ import annotations

import statistics

from measuring import describe_machine, option_parser, seconds

from nanochat import runtime

CHOSEN = runtime.prepare()

import mlx.core as mx  # noqa: E402

from nanochat.inference.kv_cache import KVCache  # noqa: E402
from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402

PROMPT = 512


def bandwidth() -> float:
    """Return bytes per second of a large copy, counting reads and writes."""
    x = mx.zeros((2**28,), mx.float32)
    mx.eval(x)

    def copy() -> None:
        mx.eval(x + 1)
        mx.synchronize()

    return 2 * x.nbytes / statistics.median(seconds(copy) for _ in range(6))


def bytes_per_step(config: GPTConfig, rows: int, position: int) -> int:
    matrices = 2 * config.num_scaling_parameters()
    cached = sum(min(window, position) + 1 for window in config.windows)
    return matrices + rows * 2 * 2 * config.n_kv_head * config.head_dim * cached


def generate(model: FastGPT, cache: KVCache, token: mx.array, steps: int) -> mx.array:
    """Return the last of `steps` greedy tokens. The CPU builds each step while the GPU computes the previous one."""
    for _ in range(steps):
        token = mx.argmax(model.logits(model.hidden(token[:, None], cache)[:, -1]), axis=-1)
        mx.async_eval(token)  # type: ignore[no-untyped-call]
    mx.eval(token)
    return token


def decode_rate(model: FastGPT, rows: int, *, steps: int) -> tuple[float, float]:
    """Return tokens per second after 512 tokens of context, and their upper bound by memory traffic."""
    cache = KVCache(model.config, capacity=2048)
    idx = mx.random.randint(10, model.config.vocab_size, (rows, PROMPT))
    token = mx.argmax(model.logits(model.hidden(idx, cache)[:, -1]), axis=-1)
    token = generate(model, cache, token, 8)
    per_step = seconds(lambda: generate(model, cache, token, steps)) / steps
    return rows / per_step, rows / (bytes_per_step(model.config, rows, PROMPT + steps // 2) / bandwidth())


def prefill_rate(model: FastGPT, rows: int) -> float:
    idx = mx.random.randint(10, model.config.vocab_size, (rows, 2048))

    def prefill() -> None:
        cache = KVCache(model.config, capacity=2048 + 64)
        mx.eval(model.logits(model.hidden(idx, cache)[:, -1]))

    return idx.size / statistics.median([seconds(prefill) for _ in range(6)][1:])


def memory_over(model: FastGPT, tokens: int) -> list[float]:
    """Return the GiB held after each eighth of `tokens` generated tokens."""
    cache = KVCache(model.config, capacity=tokens + 16)
    token, held = mx.array([1]), []
    for _ in range(8):
        token = generate(model, cache, token, tokens // 8)
        held.append((mx.get_active_memory() + mx.get_cache_memory()) / 2**30)
    return held


def main() -> None:
    options = option_parser(__doc__, steps=200, memory_tokens=4000).parse_args()
    model = FastGPT(GPTConfig(sequence_len=2048))
    model.initialise(mx.random.key(0))
    if CHOSEN.dtype == "bfloat16":
        model.set_compute_dtype(mx.bfloat16)
        model.cast_matrices(mx.bfloat16)
    mx.eval(model.named_parameters())
    print(f"{describe_machine(CHOSEN)}; copy {bandwidth() / 1e12:.2f} TB/s")
    for rows in (1, 32):
        rate, bound = decode_rate(model, rows, steps=options.steps)
        print(f"decode, batch {rows:2d}: {rate:9,.0f} tokens/s; at most {bound:9,.0f} ({rate / bound:.1%})")
    for rows in (1, 8):
        print(f"prefill, {rows} x 2,048: {prefill_rate(model, rows):,.0f} tokens/s")
    held = memory_over(model, options.memory_tokens)
    eighths = ", ".join(f"{gib:.3f}" for gib in held)
    print(f"memory over {options.memory_tokens:,} tokens, GiB after each eighth: {eighths}")


if __name__ == "__main__":
    main()
