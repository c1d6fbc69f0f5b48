"""Trains karpathy/nanochat's model for `cpu_train.py`, in a process and an environment of its own.

    python cpu_peer.py FOLDER eager|compiled MODEL_JSON ROWS

FOLDER holds a copy of karpathy/nanochat. Each line on standard input is a number of steps, and the answer is a line
with the CPU seconds that they took, after a warm-up. The package of FOLDER is called `nanochat` too, so this file
imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
import time

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
folder, form, model, rows = sys.argv[1:5]
sys.path.insert(0, folder)

import torch  # noqa: E402
from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPTConfig(**json.loads(model))
    gpt = GPT(config)
    gpt.init_weights()
    optimizer = gpt.setup_optimizer()
    forward = torch.compile(gpt, dynamic=False) if form == "compiled" else gpt
    tokens = torch.randint(0, config.vocab_size, (2, int(rows), config.sequence_len))

    def step() -> None:
        forward(tokens[0], tokens[1]).backward()
        optimizer.step()
        gpt.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    for line in sys.stdin:
        began = time.process_time()
        for _ in range(int(line)):
            step()
        sys.stdout.write(f"seconds: {time.process_time() - began}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
