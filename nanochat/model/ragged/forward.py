"""The forward pass over rows without padding: the same function as `GPT.hidden`, for every row and its parent."""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.gpt import GPT, scaled
from nanochat.model.layers import Attend, norm
from nanochat.model.ragged.ragged_rows import Ragged


def hidden(model: GPT, rows: Ragged, *, attend: Attend) -> mx.array:
    """Return the final normed residual stream (N, C) of the rows' tokens; `attend` is from `ragged.attention`."""
    config, variant = model.config, model.config.variant
    x = x0 = _embed(model, rows)
    before, after_middle = x, None
    for layer, block in enumerate(model.transformer.h):
        x = model.mix_in_embedding(x, x0, layer)
        x = x + _attention(model, layer, norm(x, variant.norm_eps), rows, attend)
        x = x + block.mlp(norm(x, variant.norm_eps))
        mx.async_eval(x)
        mx.eval(before)  # a GPU that receives all blocks at once keeps the activations of all of them: gigabytes
        before = x
        if variant.has_backout and layer == config.backout_layer:
            after_middle = x
    if after_middle is not None:
        x = x - scaled(after_middle, model.backout_lambda)
    return norm(x, variant.norm_eps)[0]


def _embed(model: GPT, rows: Ragged) -> mx.array:
    """Return the token embeddings x0 (1, N, C), smeared with the token before in the same row or its parent."""
    embedded = model.embed(rows.tokens)
    if not model.config.variant.has_smear:
        return embedded
    with_zeros = mx.concatenate([mx.zeros_like(embedded[:, :1]), embedded], axis=1)
    return model.smear(embedded, with_zeros[:, rows.previous + 1])


def _attention(model: GPT, layer: int, x: mx.array, rows: Ragged, attend: Attend) -> mx.array:
    """Return (1, N, C) from the normed residual stream (1, N, C)."""
    attn, config = model.transformer.h[layer].attn, model.config
    heads = (attn.split_heads(project(x))[0] for project in (attn.c_q, attn.c_k))
    queries, keys = (attn.norm_heads(rows.rotate(part, base=config.variant.rope_base)) for part in heads)
    values = attn.gated_values(x, model.value_rows(rows.tokens, layer))[0]
    scaled_queries = queries.astype(mx.float32) * queries.shape[-1] ** -0.5  # so that scores are not rounded
    mixed = attend(
        scaled_queries, keys.astype(mx.float32), values.astype(mx.float32), rows, window=config.windows[layer]
    )
    return attn.c_proj(mixed.reshape(x.shape).astype(x.dtype))
