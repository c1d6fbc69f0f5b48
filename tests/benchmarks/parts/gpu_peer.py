"""Measures training steps of PyTorch nanochat for `gpu_train.py`.

    PYTHONPATH=PEER python gpu_peer.py PATTERN ROWS MICRO_BATCHES STEPS

Compiles the model, prints the seconds until the first loss, and then measures once for each line of its input, so that
other work can be measured on the same GPU in between. Each result is a line of JSON.

A step is what the peer's script does on one GPU: the compiled model's loss and its backward pass for each micro-batch,
and the optimizer's step. Attention is FlashAttention 3 if it is installed, else PyTorch's own; a short window is a
quarter of the sequence.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in the peer's script

import torch

WARM_UP_STEPS = 8


def main() -> None:
    began = time.monotonic()
    pattern, rows, micro_batches, steps = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_float32_matmul_precision("high")
    gpt = importlib.import_module("nanochat.gpt")  # the peer's package has the name of ours
    uses_flash_attention = importlib.import_module("nanochat.flash_attention").USE_FA3
    config = gpt.GPTConfig(window_pattern=pattern)
    with torch.device("meta"):
        model = gpt.GPT(config)
    model.to_empty(device="cuda")
    model.init_weights()
    optimizer = model.setup_optimizer()
    compiled = torch.compile(model, dynamic=False)
    shape = (4 * micro_batches, 2, rows, config.sequence_len)
    batches = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).cuda()

    def step(number: int) -> torch.Tensor:
        for i in range(micro_batches):
            inputs, targets = batches[(number * micro_batches + i) % len(batches)]
            loss = compiled(inputs, targets) / micro_batches
            loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    step(0).item()
    print(json.dumps(time.monotonic() - began), flush=True)
    for _ in sys.stdin:
        for number in range(WARM_UP_STEPS):
            step(number)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        for number, end in enumerate(ends):
            step(number)
            end.record()
        torch.cuda.synchronize()
        result = {
            "seconds": [begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(ends)],
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "held_bytes": torch.cuda.memory_allocated(),
            "describe": f"PyTorch {torch.__version__}, {'FlashAttention 3' if uses_flash_attention else 'SDPA'}",
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
