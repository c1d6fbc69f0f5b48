"""One token of every row through the whole model: the same function as `GPT.hidden` and `GPT.logits`, with a cache.

Decoding a token is limited by the number of kernels, not by what they compute, so a layer is five of them: projection,
attention, and three more products that also do whatever lies between. The residual stream stays in float32.

Keys and values are written into the buffers in place. The rules that make this sound:
- The arrays of the buffers belong to the caller, who does not share them and evaluates every step before it does
  anything else with them; MLX then runs what it gets in order.
- A kernel that reads a buffer also writes it, and only at the index of the new position, which no thread reads.
- Each kernel takes a result of the one before, so kernels of a step, and steps, run one after the other.
So no copy is made. MLX alone may reuse an input only after all its readers have finished. It would copy the whole cache
whenever a step is submitted before the last one has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from nanochat.model.config import GPTConfig
from nanochat.model.cuda import forward
from nanochat.model.cuda.decoding.attention import attend
from nanochat.model.cuda.decoding.embedding import embed
from nanochat.model.cuda.decoding.linear import MAX_ROWS, TILE, Mix, contract, expand, logits, project
from nanochat.model.gpt import GPT, Embedding


class Inputs(NamedTuple):
    """The inputs of a step. Each is (B,) int32."""

    tokens: mx.array
    newest: mx.array
    """The token before, -1 if there is none."""
    positions: mx.array
    """Below the context length."""


def applies(config: GPTConfig, rows: int) -> bool:
    """Return whether this device runs the kernels, and they support the model's shape and this number of rows."""
    has_backout = config.variant.has_backout
    fits = config.n_embd % (2 * TILE) == 0 and rows <= MAX_ROWS and not (has_backout and config.n_layer < 3)
    return fits and forward.applies(config)


def next_logits(
    model: GPT,
    inputs: Inputs,
    buffers: Sequence[tuple[mx.array, mx.array]],
    *,
    fused_qkv: Sequence[mx.array],
    vocab_size: int,
) -> mx.array:
    """Return the logits (B, vocab_size) float32 of what follows, after adding the inputs to the buffers in place.

    Args:
        model: its matrices have the compute dtype.
        inputs: tokens and positions.
        buffers: each layer's keys and values, (B, G, S, D); position p is at index p % S.
        fused_qkv: each layer's `forward.fuse_qkv`.
        vocab_size: how many logits are needed.
    """
    config = model.config
    x0, stream = _embed(model, inputs)
    saved = None
    for layer, block in enumerate(model.transformer.h):
        embedding = model.value_embeds[layer]
        table = embedding.weight if isinstance(embedding, Embedding) else None
        projected = project(stream, fused_qkv[layer], config)
        attended = attend(config, projected, buffers[layer], inputs.positions, inputs.tokens, table)
        (stream,) = contract(attended, block.attn.c_proj.weight, stream)
        expanded = expand(stream, block.mlp.c_fc.weight, config)
        saves = config.variant.has_backout and layer == config.backout_layer
        mix = _mix(model, layer + 1, x0, saved)
        stream, *added = contract(expanded, block.mlp.c_proj.weight, stream, mix, saves=saves)
        saved = added[0] if saves else saved
    return logits(stream, model.lm_head.weight, config, vocab_size)


def _embed(model: GPT, inputs: Inputs) -> list[mx.array]:
    variant = model.config.variant
    smear = (model.smear_gate.weight, model.smear_lambda) if variant.has_smear else None
    factors = (model.resid_lambdas, model.x0_lambdas) if variant.has_residual_lambdas else None
    return embed(variant, model.transformer.wte.weight, inputs.tokens, inputs.newest, smear, factors)


def _mix(model: GPT, layer: int, x0: mx.array, saved: mx.array | None) -> Mix | None:
    """Return how the input of a layer, or of the final norm after the last one, comes from the residual stream.

    None if it is the stream itself.
    """
    if layer < model.config.n_layer:
        has_lambdas = model.config.variant.has_residual_lambdas
        return Mix(model.resid_lambdas, model.x0_lambdas, layer, x0) if has_lambdas else None
    return None if saved is None else Mix(None, model.backout_lambda, 0, saved, sign=-1)
