"""Computes logits with mlx-lm, for a test: the process that runs this file knows only the exported folder.

Usage: python mlx_logits.py FOLDER TOKENS.npy CHUNKS LOGITS.npz. CHUNKS is a JSON list: each item is a list of the sizes
of the pieces in which the text is read with a cache, or an empty list to read it without one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache

mx.set_default_device(mx.cpu)
folder, tokens, chunks, target = sys.argv[1:]
model, _ = load(folder, trust_remote_code="model_file" in json.loads(Path(folder, "config.json").read_text()))
rows = mx.array(np.load(tokens))
results = []
for sizes in json.loads(chunks):
    cache, parts, start = make_prompt_cache(model), [], 0
    for size in sizes:
        parts.append(model(rows[:, start : start + size], cache=cache))
        start += size
    results.append(np.array(mx.concatenate(parts, axis=1) if sizes else model(rows)))
np.savez(target, *results)
