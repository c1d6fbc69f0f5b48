"""Trains PyTorch nanochat on the rows of `equal_tokens.py`, as its script does on one GPU.

Runs in a process of its own whose PYTHONPATH begins with the peer's folder, because both packages are called
`nanochat`. The peer's training script trains when it is imported. So its three schedules are taken from its source, and
its learning rates and their scaling with the batch are repeated here.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in the peer's script

import numpy as np
import torch
from parts.equal_tokens_run import Result, Run

RATES = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "scalar_lr": 0.5, "matrix_lr": 0.02}
REFERENCE_TOKENS_PER_STEP = 2**19
WARMDOWN_RATIO, FINAL_LR_FRAC = 0.65, 0.05
SCHEDULES = ("get_lr_multiplier", "get_muon_momentum", "get_weight_decay")
EVALUATED_ROWS = 4
"""Rows per forward pass of the evaluation, which holds all their logits in float32."""


def train(run: Run) -> Result:
    """Train a model of the peer with its optimizer and schedules, and measure it with its evaluation."""
    gpt, loss_eval = importlib.import_module("nanochat.gpt"), importlib.import_module("nanochat.loss_eval")
    assert Path(run.peer).resolve() in Path(str(gpt.__file__)).resolve().parents, f"{gpt.__file__} is not the peer's"
    began, device = time.monotonic(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(run.seed)
    torch.set_float32_matmul_precision("high")
    held_out = run.held_out()
    model = _build(gpt, run, sequence_len=held_out.inputs.shape[1], device=device)
    losses = _steps(model, run, device)
    inputs, targets = (torch.from_numpy(rows).long().to(device) for rows in (held_out.inputs, held_out.targets))
    batches = list(zip(inputs.split(EVALUATED_ROWS), targets.split(EVALUATED_ROWS), strict=True))
    token_bytes = torch.from_numpy(held_out.token_bytes).long().to(device)
    return Result(
        bpb=loss_eval.evaluate_bpb(model, batches, len(batches), token_bytes),
        losses=torch.stack(losses).tolist(),
        seconds=time.monotonic() - began,
    )


def _build(gpt: Any, run: Run, *, sequence_len: int, device: str) -> Any:
    heads = -(-64 * run.depth // 128)
    config = gpt.GPTConfig(
        sequence_len=sequence_len,
        vocab_size=run.vocab_size,
        n_layer=run.depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=128 * heads,
        window_pattern="SSSL",
    )
    with torch.device("meta"):
        model = gpt.GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    with np.load(run.initial_weights) as weights, torch.no_grad():
        parameters = dict(model.named_parameters())
        assert sorted(parameters) == sorted(weights.files), "both systems name their parameters in the same way"
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(weights[name]).reshape(parameter.shape))
    return model


def _steps(model: Any, run: Run, device: str) -> list[torch.Tensor]:
    """Train, and return the loss of every step."""
    compiled = torch.compile(model, dynamic=False)
    scale = math.sqrt(run.tokens_per_step / REFERENCE_TOKENS_PER_STEP)
    rates = {name: scale * rate for name, rate in RATES.items()}
    optimizer = model.setup_optimizer(**rates, weight_decay=run.weight_decay)
    lr_multiplier, muon_momentum, weight_decay = _schedules(run)
    losses = []
    for step, tokens in enumerate(run.batches()):
        parts = torch.from_numpy(tokens).long().to(device).split(run.micro_batch_size)
        summands = []
        for part in parts:
            loss = compiled(part[:, :-1].contiguous(), part[:, 1:].contiguous()) / len(parts)
            loss.backward()
            summands.append(loss.detach())
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_multiplier(step)
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = muon_momentum(step), weight_decay(step)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        losses.append(torch.stack(summands).sum())
        run.print_progress(losses)
    return losses


def _schedules(run: Run) -> list[Any]:
    """Return the schedule functions of the peer's script, with the settings that they read from its globals."""
    script = ast.parse((Path(run.peer) / "scripts" / "base_train.py").read_text())
    functions: list[ast.stmt] = [
        node for node in script.body if isinstance(node, ast.FunctionDef) and node.name in SCHEDULES
    ]
    settings = {"warmup_steps": run.warmup_steps, "warmdown_ratio": WARMDOWN_RATIO, "final_lr_frac": FINAL_LR_FRAC}
    names: dict[str, Any] = {
        "math": math,
        "args": argparse.Namespace(**settings),
        "num_iterations": run.steps,
        "weight_decay_scaled": run.weight_decay,
    }
    exec(compile(ast.Module(body=functions, type_ignores=[]), "base_train.py", "exec"), names)
    return [names[name] for name in SCHEDULES]
