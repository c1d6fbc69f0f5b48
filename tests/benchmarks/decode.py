"""Decoding speed and cache size by context length.

    python tests/benchmarks/decode.py [--rows 1] [--rounds 5] [--architecture seed] [--window-pattern SSSL]

A model of the quickstart's size with random weights and a context of 2,112 decodes 64 tokens per row, after 64, 512 and
2,048 tokens in the cache. The three contexts alternate within a round. Prints one line per context: tokens per second
(median and range over the rounds; CPU seconds on a CPU), the ratio to the shortest context, and the size of the cache
compared with a cache that keeps every position in every layer.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from measuring import describe_machine, median_and_range, option_parser

from nanochat import runtime

CONTEXTS = (64, 512, 2048)
STEPS = 64


def main() -> None:
    parser = option_parser(__doc__, rows=1, rounds=5, sequence_len=2112, n_layer=4, n_embd=128)
    parser.add_argument("--window-pattern", default="SSSL")
    parser.add_argument("--architecture", choices=("seed", "current"), default="seed")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    chosen = runtime.prepare(device=options.device)
    import mlx.core as mx

    from nanochat.inference.kv_cache import prefill
    from nanochat.model.config import GPTConfig
    from nanochat.model.device import select_device
    from nanochat.model.dispatch import FastGPT

    select_device(chosen.backend)
    print(describe_machine(chosen))
    names = ("architecture", "sequence_len", "n_layer", "n_embd", "window_pattern")
    heads, shape = options.n_embd // 64, {name: getattr(options, name) for name in names}
    config = GPTConfig(vocab_size=2048, n_head=heads, n_kv_head=heads, **shape)
    model = FastGPT(config)
    model.initialise(mx.random.key(0))
    if chosen.dtype == "bfloat16":
        model.set_compute_dtype(mx.bfloat16)
    mx.eval(model.named_parameters())
    clock = time.process_time if chosen.backend == "cpu" else time.perf_counter
    tokens = np.random.default_rng(0).integers(10, 2048, size=max(CONTEXTS)).tolist()
    print(f"{config.n_layer} layers, width {config.n_embd}, windows {config.windows}, {options.rows} rows")

    def rate(context: int) -> tuple[float, int]:
        hidden, cache = prefill(model, [tokens[:context]], room=STEPS)
        cache = cache.take([0] * options.rows)
        token = mx.repeat(mx.argmax(model.logits(hidden), axis=-1), options.rows)
        mx.eval(token)
        start = clock()
        for _ in range(STEPS):
            token = mx.argmax(model.logits(model.hidden(token[:, None], cache)[:, -1]), axis=-1)
            mx.eval(token)
        seconds = clock() - start
        arrays = [array for layer in cache.layers for array in (layer.keys, layer.values) if array is not None]
        return options.rows * STEPS / seconds, sum(array.nbytes for array in arrays)

    rates: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    sizes = {}
    for number in range(options.rounds + 1):
        for context in CONTEXTS:
            value, sizes[context] = rate(context)
            if number:  # the first round warms up
                rates[context].append(value)
    shortest = statistics.median(rates[CONTEXTS[0]])
    position_bytes = 2 * config.n_layer * config.n_kv_head * config.head_dim * (2 if chosen.dtype == "bfloat16" else 4)
    for context in CONTEXTS:
        ratio = statistics.median(rates[context]) / shortest
        share = sizes[context] / (position_bytes * options.rows * (context + STEPS))
        print(
            f"context {context:>5}: {median_and_range(rates[context], 0)} tokens/s, {ratio:.2f} of the shortest; "
            f"cache {sizes[context] / 2**20:.1f} MiB, {share:.2f} of all positions"
        )


if __name__ == "__main__":
    main()
