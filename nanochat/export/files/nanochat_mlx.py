"""A nanochat model for mlx-lm, written by `nanochat-run export`. It needs `trust_remote_code=True`.

    x0 = norm(wte[tokens])
    x0 = x0 + smear_lambda * sigmoid(smear_gate x0) * (x0 of the previous token)
    x  = x0
    for each layer:
        x = resid_lambda * x + x0_lambda * x0
        x = x + attention(norm(x)), whose values are c_v x + gate * value_embed[tokens] in some layers
        x = x + c_proj relu(c_fc norm(x))^2
    x  = x - backout_lambda * (x after layer backout_layer)
    logits = softcap * tanh(lm_head norm(x) / softcap)

`config.json` says which of these parts the model has. Shapes: B batch, T positions, H heads, G key/value heads, D head
size, C width.
"""

# Without `from __future__ import annotations`: mlx-lm runs this file under a name that is not in sys.modules, where a
# dataclass looks up annotations that are texts.
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache


@dataclass
class ModelArgs(BaseModelArgs):
    """The fields of `config.json` that the model needs."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    final_logit_softcapping: float
    qk_scale: float = 1.0
    sliding_window: int = 0
    """Positions that a query of a `sliding_attention` layer sees, its own included."""
    layer_types: list[str] = field(default_factory=list)
    value_embedding_layers: list[int] = field(default_factory=list)
    gate_channels: int = 0
    gate_scale: float = 0.0
    has_residual_lambdas: bool = False
    smear_channels: int = 0
    """0 if the model has no smear."""
    backout_layer: int = -1
    """-1 if the model has no backout."""

    def is_sliding(self, layer: int) -> bool:
        """Return whether the queries of a layer see only a window."""
        return self.layer_types[layer] == "sliding_attention"


def norm(x: mx.array, eps: float) -> mx.array:
    """Return x divided by its root mean square; the norm has no weights."""
    return mx.fast.rms_norm(x, None, eps)


def scaled(x: mx.array, factor: mx.array) -> mx.array:
    """Return x * factor in x's dtype, multiplied in float32."""
    return (x.astype(mx.float32) * factor.astype(mx.float32)).astype(x.dtype)


class Attention(nn.Module):
    """Attention with rotated and then normed queries and keys; some layers add a gated embedding to the values."""

    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.args = args
        self.head_dim = args.hidden_size // args.num_attention_heads
        kv_width = args.num_key_value_heads * self.head_dim
        self.c_q = nn.Linear(args.hidden_size, args.hidden_size, bias=False)
        self.c_k = nn.Linear(args.hidden_size, kv_width, bias=False)
        self.c_v = nn.Linear(args.hidden_size, kv_width, bias=False)
        self.c_proj = nn.Linear(args.hidden_size, args.hidden_size, bias=False)
        self.has_value_embedding = layer in args.value_embedding_layers
        if self.has_value_embedding:
            self.value_embed = nn.Embedding(args.vocab_size, kv_width)
            self.ve_gate = nn.Linear(args.gate_channels, args.num_key_value_heads, bias=False)

    def __call__(self, x: mx.array, tokens: mx.array, mask: Any, cache: Any) -> mx.array:
        """Return (B, T, C) from the normed residual stream (B, T, C) of tokens (B, T)."""
        offset = 0 if cache is None else cache.offset
        queries = self.rotate_and_norm(self.split_heads(self.c_q(x)), offset)
        keys = self.rotate_and_norm(self.split_heads(self.c_k(x)), offset)
        values = self.split_heads(self.gated_values(x, tokens))
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        mixed = scaled_dot_product_attention(queries, keys, values, cache=cache, scale=self.head_dim**-0.5, mask=mask)
        return self.c_proj(mixed.swapaxes(1, 2).reshape(x.shape))

    def gated_values(self, x: mx.array, tokens: mx.array) -> mx.array:
        """Return the values (B, T, G * D)."""
        values = self.c_v(x)
        if not self.has_value_embedding:
            return values
        gate = self.args.gate_scale * mx.sigmoid(self.ve_gate(x[..., : self.args.gate_channels]))
        return values + mx.repeat(gate, self.head_dim, axis=-1) * self.value_embed(tokens).astype(x.dtype)

    def split_heads(self, x: mx.array) -> mx.array:
        """Return (B, heads, T, D) from (B, T, heads * D)."""
        return x.reshape(*x.shape[:2], -1, self.head_dim).swapaxes(1, 2)

    def rotate_and_norm(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Return queries or keys with rotary embeddings, whose angles are negative, and normed per head."""
        rotated = mx.fast.rope(
            x, self.head_dim, traditional=False, base=self.args.rope_theta, scale=-1.0, offset=offset
        )
        return norm(rotated, self.args.rms_norm_eps) * self.args.qk_scale


class MLP(nn.Module):
    """c_proj relu(c_fc x)^2."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.c_fc = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.c_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Return (B, T, C) from (B, T, C)."""
        return self.c_proj(mx.square(mx.maximum(self.c_fc(x), 0)))


class Block(nn.Module):
    """Attention, then MLP; each reads the normed residual stream and adds to it."""

    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.eps = args.rms_norm_eps
        self.attn = Attention(args, layer)
        self.mlp = MLP(args)

    def __call__(self, x: mx.array, tokens: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Return the residual stream (B, T, C) after this block."""
        x = x + self.attn(norm(x, self.eps), tokens, mask, cache)
        return x + self.mlp(norm(x, self.eps))


class Transformer(nn.Module):
    """The token embeddings `wte` and the blocks `h`."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.wte = nn.Embedding(args.vocab_size, args.hidden_size)
        self.h = [Block(args, layer) for layer in range(args.num_hidden_layers)]


class Model(nn.Module):
    """The whole model. A cache has an entry for each layer and, if there is a smear, one for the previous token."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.transformer = Transformer(args)
        self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)
        if args.has_residual_lambdas:
            self.resid_lambdas = mx.ones((args.num_hidden_layers,))
            self.x0_lambdas = mx.zeros((args.num_hidden_layers,))
        if args.smear_channels:
            self.smear_gate = nn.Linear(args.smear_channels, 1, bias=False)
            self.smear_lambda = mx.zeros((1,))
        if args.backout_layer >= 0:
            self.backout_lambda = mx.zeros((1,))

    @property
    def layers(self) -> list[Block]:
        return self.transformer.h

    def make_cache(self) -> list[Any]:
        """Return an empty cache, for `mlx_lm.models.cache.make_prompt_cache`."""
        args = self.args
        caches: list[Any] = [
            RotatingKVCache(max_size=args.sliding_window) if args.is_sliding(layer) else KVCache()
            for layer in range(args.num_hidden_layers)
        ]
        return [*caches, ArraysCache(1)] if args.smear_channels else caches

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Return float32 logits (B, T, vocabulary) of tokens (B, T), which continue the cache if there is one."""
        args = self.args
        layer_caches = cache or [None] * (args.num_hidden_layers + 1)
        x0 = norm(self.transformer.wte(inputs), args.rms_norm_eps)
        if args.smear_channels:
            x0 = self.smear(x0, layer_caches[args.num_hidden_layers])
        masks = self.masks(x0, layer_caches)
        x, after_middle = x0, None
        for layer, block in enumerate(self.transformer.h):
            if args.has_residual_lambdas:
                x = scaled(x, self.resid_lambdas[layer]) + scaled(x0, self.x0_lambdas[layer])
            x = block(x, inputs, masks[args.layer_types[layer]], layer_caches[layer])
            if layer == args.backout_layer:
                after_middle = x
        if after_middle is not None:
            x = x - scaled(after_middle, self.backout_lambda)
        logits = self.lm_head(norm(x, args.rms_norm_eps)).astype(mx.float32)
        return args.final_logit_softcapping * mx.tanh(logits / args.final_logit_softcapping)

    def masks(self, x: mx.array, caches: list[Any]) -> dict[str, Any]:
        """Return the attention mask of each type of layer."""
        masks = {}
        for layer, kind in enumerate(self.args.layer_types):
            if kind not in masks:
                window = self.args.sliding_window if self.args.is_sliding(layer) else None
                masks[kind] = create_attention_mask(x, caches[layer], window_size=window)
        return masks

    def smear(self, embedded: mx.array, cache: ArraysCache | None) -> mx.array:
        """Return embeddings (B, T, C), each plus a gated share of the previous token's, which is 0 at the start.

        The rows of a batch may be padded on the right: the cache then has the number of their tokens.
        """
        batch, length, _ = embedded.shape
        first = mx.zeros_like(embedded[:, :1]) if cache is None or cache[0] is None else cache[0]
        shifted = mx.concatenate([first, embedded], axis=1)
        if cache is not None:
            ends = mx.full((batch,), length) if cache.lengths is None else mx.clip(cache.lengths, 0, length)
            cache[0] = mx.take_along_axis(shifted, ends[:, None, None], axis=1)
            cache.advance(length)
        gate = mx.sigmoid(self.smear_gate(embedded[..., : self.args.smear_channels]))
        return embedded + scaled(gate * shifted[:, :-1], self.smear_lambda)
