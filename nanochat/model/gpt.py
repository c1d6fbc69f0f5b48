"""The GPT, written out in plain MLX to be read from top to bottom: tokens to residual stream to logits.

`layers` has attention, MLP and the blocks of both; this module stacks them:

    x0 = norm(wte[tokens])                                     token embeddings, (B, T, C)
    x0 = x0 + smear_lambda * sigmoid(smear_gate x0) * before   smear; `before` is x0 of the previous token
    x  = x0
    for each layer:
        x = resid_lambdas[layer] * x + x0_lambdas[layer] * x0
        x = x + attention(norm(x), value_embeds[layer])        over `config.windows[layer]` earlier positions
        x = x + mlp(norm(x))
    x  = x - backout_lambda * (x after layer `config.backout_layer`)   backout
    logits = SOFTCAP * tanh(lm_head norm(x) / SOFTCAP)         (B, T, V)

Only the `current` architecture has smear and backout. Every second layer, the last one included, has value embeddings.
The `portable` architecture has neither those nor the lambdas: its blocks read x itself.

The two modules are the reference: the implementations in `cpu`, `cuda` and `ragged` compute the same function faster
and are tested against it; `dispatch` chooses between them. Parameters have the names of karpathy/nanochat's
checkpoints, so weights move between the two without a table. Weights are float32 and are cast to the activations' dtype
at each use.

Shapes: B batch, T new positions, S visible positions (cached ones included), H query heads, G key/value heads, D head
size, C = H * D width, V vocabulary. Matrices are (out, in). Not here: the loss (`low_memory.loss`), initial values
(`init`), sizes and architecture constants (`config`), where a cache keeps its arrays (`nanochat.inference.kv_cache`).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator

import mlx.core as mx
from mlx.nn.layers.base import Module

from nanochat.errors import StageError
from nanochat.model.config import SMEAR_CHANNELS, SOFTCAP, GPTConfig
from nanochat.model.init import initial_parameters
from nanochat.model.layers import Activate, Attend, Block, Cache, Linear, attention, norm, squared_relu
from nanochat.model.low_memory.recompute import recomputed


class Embedding(Module):
    """A table with one row per token."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = mx.zeros(shape)

    def __call__(self, idx: mx.array) -> mx.array:
        """Return the rows of tokens `idx`, (..., width), in the weight's dtype."""
        return self.weight[idx]


def scaled(x: mx.array, factor: mx.array) -> mx.array:
    """Return x * factor in x's dtype. The product is float32, so that a learned factor is not rounded first."""
    return (x.astype(mx.float32) * factor.astype(mx.float32)).astype(x.dtype)


class _Transformer(Module):
    """Holds `wte` and the blocks `h` under the names that checkpoints use."""

    def __init__(self, config: GPTConfig, attend: Attend, activate: Activate) -> None:
        super().__init__()
        self.wte = Embedding((config.padded_vocab_size, config.n_embd))
        self.h = [Block(config, layer, attend, activate) for layer in range(config.n_layer)]


class GPT(Module):
    """The model. Weights are float32 (until `cast_matrices`); `set_compute_dtype` sets the dtype of activations.

    Parameters, where V here includes the padding of the vocabulary:
        transformer.wte (V, C), lm_head (V, C), transformer.h: the blocks, one per layer
        resid_lambdas, x0_lambdas (n_layer,): the factors on x and on x0 before each block; not in `portable`
        value_embeds: a table (V, G * D) for each layer that has value embeddings
        smear_lambda (1,), smear_gate (1, SMEAR_CHANNELS), backout_lambda (1,): `current` architecture only
    """

    def __init__(self, config: GPTConfig, attend: Attend = attention, activate: Activate = squared_relu) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = mx.float32
        self.recomputes_blocks = False
        variant, vocab, kv_width = config.variant, config.padded_vocab_size, config.n_kv_head * config.head_dim
        if variant.has_residual_lambdas:
            self.resid_lambdas = mx.zeros((config.n_layer,))
            self.x0_lambdas = mx.zeros((config.n_layer,))
        if variant.has_smear:
            self.smear_lambda = mx.zeros((1,))
            self.smear_gate = Linear((1, SMEAR_CHANNELS))
        if variant.has_backout:
            self.backout_lambda = mx.zeros((1,))
        self.transformer = _Transformer(config, attend, activate)
        self.lm_head = Linear((vocab, config.n_embd))
        # A layer without value embeddings has an empty module: MLX's parameter trees need lists without holes.
        self.value_embeds = [
            Embedding((vocab, kv_width)) if config.has_value_embedding(layer) else Module()
            for layer in range(config.n_layer)
        ]

    def __call__(self, idx: mx.array, cache: Cache | None = None) -> mx.array:
        """Return float32 logits (B, T, V) of tokens (B, T), which continue the cache if there is one."""
        return self.logits(self.hidden(idx, cache))

    def hidden(self, idx: mx.array, cache: Cache | None = None) -> mx.array:
        """Return the final normed residual stream, (B, T, C) in the compute dtype."""
        return deque(self.residual_stream(idx, cache), maxlen=1).pop()  # the last item that it yields

    def residual_stream(self, idx: mx.array, cache: Cache | None = None) -> Iterator[mx.array]:
        """Yield the residual stream (B, T, C) after the embedding, after each block, and after the final norm."""
        variant = self.config.variant
        x0 = self.embed(idx)
        if variant.has_smear:
            x0 = self.smear(x0, self.previous(x0, cache))
        yield x0
        x, after_middle = x0, None
        for layer, block in enumerate(self.transformer.h):
            x = self.mix_in_embedding(x, x0, layer)
            x = self.run_block(block, x, self.value_rows(idx, layer), cache)
            yield x
            if variant.has_backout and layer == self.config.backout_layer:
                after_middle = x
        if after_middle is not None:
            x = x - scaled(after_middle, self.backout_lambda)
        if cache is not None:
            cache.advance(idx)
        yield norm(x, variant.norm_eps)

    def run_block(self, block: Block, x: mx.array, value_rows: mx.array | None, cache: Cache | None) -> mx.array:
        """Return the residual stream (B, T, C) after a block, which is recomputed later if the model is set so."""
        if not self.recomputes_blocks or cache is not None:
            return block(x, value_rows, cache)
        return recomputed(block, x) if value_rows is None else recomputed(block, x, value_rows)

    def logits(self, hidden: mx.array) -> mx.array:
        """Return float32 logits (..., V), bounded by the softcap; the columns that pad the vocabulary are cut off."""
        raw = self.lm_head(hidden)[..., : self.config.vocab_size].astype(mx.float32)
        return SOFTCAP * mx.tanh(raw / SOFTCAP)

    def embed(self, idx: mx.array) -> mx.array:
        """Return normed token embeddings (B, T, C) in the compute dtype."""
        return norm(self.transformer.wte(idx).astype(self.compute_dtype), self.config.variant.norm_eps)

    def smear(self, embedded: mx.array, previous: mx.array) -> mx.array:
        """Return embeddings (B, T, C), each plus a gated share of the previous token's: x0 depends on two tokens."""
        gate = mx.sigmoid(self.smear_gate(embedded[..., :SMEAR_CHANNELS]))
        return embedded + scaled(gate * previous, self.smear_lambda)

    def previous(self, embedded: mx.array, cache: Cache | None) -> mx.array:
        """Return the previous token's embedding at each position (B, T, C), 0 at the start of a row."""
        newest = None if cache is None else cache.newest
        if newest is None:
            first = mx.zeros_like(embedded[:, :1])
        else:
            first = self.embed(mx.maximum(newest, 0)) * (newest >= 0)[..., None]
        return mx.concatenate([first, embedded[:, :-1]], axis=1)

    def mix_in_embedding(self, x: mx.array, x0: mx.array, layer: int) -> mx.array:
        """Return the input of a block: the residual stream and the token embeddings, each times a learned scalar.

        Without these scalars the input is the residual stream itself.
        """
        if not self.config.variant.has_residual_lambdas:
            return x
        return scaled(x, self.resid_lambdas[layer]) + scaled(x0, self.x0_lambdas[layer])

    def value_rows(self, idx: mx.array, layer: int) -> mx.array | None:
        """Return the tokens' value embeddings (B, T, G * D) in the compute dtype; None if the layer has none."""
        if not self.config.has_value_embedding(layer):
            return None
        rows: mx.array = self.value_embeds[layer](idx)
        return rows.astype(self.compute_dtype)

    def set_compute_dtype(self, dtype: mx.Dtype) -> None:
        """Set the dtype of activations. Weights keep theirs, and logits are always float32."""
        self.compute_dtype = dtype

    def cast_matrices(self, dtype: mx.Dtype) -> None:
        """Store matrices and tables in `dtype`, for inference: the same results as casting them at each use."""
        named = self.named_parameters().items()
        self.set_parameters({name: x.astype(dtype) if x.ndim > 1 else x for name, x in named})

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.recomputes_blocks = enabled

    def initialise(self, key: mx.array) -> None:
        """Set every weight as the architecture prescribes, drawn from `key`."""
        self.set_parameters(initial_parameters(self.config, key))

    def named_parameters(self) -> dict[str, mx.array]:
        """Return name -> array of every parameter, in checkpoint order."""
        return {name: (self if owner is None else owner)[key] for name, (owner, key) in self._owners.items()}

    def set_parameters(self, parameters: dict[str, mx.array]) -> None:
        """Replace every parameter. A missing or unknown name or a wrong shape raises a StageError."""
        shapes = {name: tuple(x.shape) for name, x in parameters.items()}
        if shapes != self._shapes:
            raise StageError(self.config.find_misfit(shapes) or "")
        # A training step does this twice, and `Module.update` would take milliseconds.
        for name, (owner, key) in self._owners.items():
            (self if owner is None else owner)[key] = parameters[name]

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.config.parameter_shapes()

    @functools.cached_property
    def _owners(self) -> dict[str, tuple[Module | None, str]]:
        """Name -> the module that holds the parameter, and its key there, in checkpoint order.

        None is the model itself, which must not refer to itself: its weights would outlive it.
        """
        return {name: self._owner(name) for name in self._shapes}

    def _owner(self, name: str) -> tuple[Module | None, str]:
        *path, key = name.split(".")
        owner = functools.reduce(lambda at, part: at[int(part)] if isinstance(at, list) else at[part], path, self)
        return owner if path else None, key
