"""Computes logits with transformers on the CPU, for a test. The arguments are those of `mlx_logits.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

folder, tokens, chunks, target = sys.argv[1:]
trust = "auto_map" in json.loads(Path(folder, "config.json").read_text())
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=torch.float32).eval()
rows = torch.from_numpy(np.load(tokens))
results = []
with torch.no_grad():
    for sizes in json.loads(chunks):
        cache, parts, start = DynamicCache(config=model.config), [], 0
        for size in sizes:
            parts.append(model(rows[:, start : start + size], cache=cache, use_cache=True).logits)
            start += size
        results.append((torch.cat(parts, dim=1) if sizes else model(rows, use_cache=False).logits).numpy())
np.savez(target, *results)
