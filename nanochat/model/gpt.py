"""GPT: tokens -> residual stream -> logits, for both architectures; parameter names are the original's.

Shapes: B batch, T time, C width, V vocabulary. Not here: the loss (`loss`), initial values (`init`), where a cache
keeps its arrays (`nanochat.inference.kv_cache`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten

from nanochat.errors import StageError
from nanochat.model.capped_softmax import judged
from nanochat.model.config import SMEAR_CHANNELS, SOFTCAP, GPTConfig
from nanochat.model.cuda import forward
from nanochat.model.init import initial_parameters
from nanochat.model.layers import Block, Embedding, LayerCache, Linear, norm, scaled
from nanochat.model.ragged.rows import Ragged
from nanochat.model.recompute import recomputed


class Cache(Protocol):
    """What the model reads and writes of earlier positions."""

    offset: int
    """Positions that are in already."""
    starts: mx.array | None
    """(B,) first visible position of each row, where rows are padded on the left."""
    previous_embedding: mx.array | None
    """(B, 1, C) normed embedding of the newest position, for the smear."""

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One cache a layer."""
        ...

    def advance(self, tokens: int) -> None:
        """Count `tokens` new positions, after every layer has seen them."""
        ...


class _Transformer(Module):
    """Holds `wte` and the blocks under the names that checkpoints have."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = Embedding((config.padded_vocab_size, config.n_embd))
        self.h = [Block(config, layer) for layer in range(config.n_layer)]


class GPT(Module):
    """The model. Parameters are float32; `set_compute_dtype` sets the dtype of activations."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = mx.float32
        self.checkpoints_blocks = False
        self._joined: list[mx.array] = []
        variant, vocab = config.variant, config.padded_vocab_size
        self.resid_lambdas = mx.zeros((config.n_layer,))
        self.x0_lambdas = mx.zeros((config.n_layer,))
        if variant.has_smear:
            self.smear_lambda = mx.zeros((1,))
            self.smear_gate = Linear((1, SMEAR_CHANNELS))
        if variant.has_backout:
            self.backout_lambda = mx.zeros((1,))
        self.transformer = _Transformer(config)
        self.lm_head = Linear((vocab, config.n_embd))
        kv_width = config.n_kv_head * config.head_dim
        # An empty module stands where a layer has none: MLX's trees need a list without holes.
        self.value_embeds = [
            Embedding((vocab, kv_width)) if config.has_value_embedding(layer) else Module()
            for layer in range(config.n_layer)
        ]

    def set_compute_dtype(self, dtype: mx.Dtype) -> None:
        """Set the dtype of activations; weights keep theirs, and logits are float32."""
        self.compute_dtype = dtype

    @property
    def joined(self) -> list[mx.array]:
        """What a layer multiplies first, as one matrix a layer: made by `cast_matrices`, empty else.

        Empty also where activations are of another dtype than the matrices, which are then cast at each use.
        """
        fits = self._joined and self._joined[0].dtype == self.compute_dtype
        return self._joined if fits else []

    def cast_matrices(self, dtype: mx.Dtype) -> None:
        """Store matrices and tables in `dtype`, for inference: the same results as casting them at each use."""
        cast = {name: x.astype(dtype) if x.ndim > 1 else x for name, x in self.named_parameters().items()}
        self.set_parameters(cast)
        if forward.applies(self.config):
            self._joined = [forward.joined_projection(block.attn, dtype) for block in self.transformer.h]

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.checkpoints_blocks = enabled

    def initialise(self, key: mx.array) -> None:
        """Set every weight as the architecture prescribes, drawn from `key`."""
        self.set_parameters(initial_parameters(self.config, key))

    def named_parameters(self) -> dict[str, mx.array]:
        """Return name -> array of every parameter, in checkpoint order."""
        found = dict(tree_flatten(self.parameters()))
        return {name: found[name] for name in self.config.parameter_shapes()}

    def set_parameters(self, parameters: dict[str, mx.array]) -> None:
        """Replace every parameter.

        Raises:
            StageError: a name is missing or unknown, or a shape is another.
        """
        _check_names_and_shapes(self.config, parameters)
        self.update(tree_unflatten(list(parameters.items())))
        self._joined = []

    def __call__(self, idx: mx.array, cache: Cache | None = None) -> mx.array:
        """Return float32 logits (B, T, vocab_size) of tokens (B, T); with a cache, of the positions that follow it."""
        return self.logits(self.hidden(idx, cache))

    def hidden(self, idx: mx.array, cache: Cache | None = None) -> mx.array:
        """Return the final normed residual stream, (B, T, C) in the compute dtype."""
        if not self.checkpoints_blocks and forward.applies(self.config):
            return forward.hidden(self, idx, cache)
        x = None
        for x in self.residual_stream(idx, cache):  # noqa: B007 -- only the last is wanted
            pass
        assert x is not None, "the stream has at least the embedding"
        return x

    def hidden_ragged(self, rows: Ragged) -> mx.array:
        """Return the final normed residual stream (N, C) of rows without padding, in the compute dtype."""
        before = None
        for stream in self.residual_stream(rows.tokens, ragged=rows):
            mx.async_eval(stream)
            if before is not None:
                mx.eval(before)  # a GPU that is sent all blocks at once keeps what all of them need: gigabytes
            before = stream
        return stream[0]

    def logits(self, hidden: mx.array) -> mx.array:
        """Return float32 softcapped logits (..., vocab_size); padding columns are cut off."""
        raw = self.lm_head(hidden)[..., : self.config.vocab_size].astype(mx.float32)
        return SOFTCAP * mx.tanh(raw / SOFTCAP)

    def judge(self, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        """Return each target's log-probability after its hidden state, float32, and whether it is the likeliest token.

        Shapes: hidden (N, C), targets and both results (N,). On a CPU take rows by the block (`fast_math`).
        """
        return judged(hidden, self.lm_head.weight[: self.config.vocab_size], targets)

    def residual_stream(
        self, idx: mx.array, cache: Cache | None = None, ragged: Ragged | None = None
    ) -> Iterator[mx.array]:
        """Yield the residual stream (B, T, C) after the embedding, after each block, and after the final norm."""
        variant, offset = self.config.variant, 0 if cache is None else cache.offset
        x = first = self._embed(idx, cache, ragged)
        yield x
        kept = None
        for layer, block in enumerate(self.transformer.h):
            x = scaled(x, self.resid_lambdas[layer]) + scaled(first, self.x0_lambdas[layer])
            value_rows = (
                self.value_embeds[layer](idx).astype(x.dtype) if self.config.has_value_embedding(layer) else None
            )
            if cache is not None:
                x = block(x, value_rows, offset=offset, cache=cache.layers[layer], starts=cache.starts)
            elif self.checkpoints_blocks:
                x = recomputed(block, *(array for array in (x, value_rows) if array is not None))
            else:
                x = block(x, value_rows, ragged=ragged)
            yield x
            if variant.has_backout and layer == self.config.backout_layer:
                kept = x
        if kept is not None:
            x = x - scaled(kept, self.backout_lambda)
        if cache is not None:
            cache.advance(idx.shape[1])
        yield norm(x, variant.norm_eps)

    def _embed(self, idx: mx.array, cache: Cache | None, ragged: Ragged | None) -> mx.array:
        embedded = norm(self.transformer.wte(idx).astype(self.compute_dtype), self.config.variant.norm_eps)
        return self.smeared(embedded, cache, ragged) if self.config.variant.has_smear else embedded

    def smeared(self, embedded: mx.array, cache: Cache | None = None, ragged: Ragged | None = None) -> mx.array:
        """Return normed embeddings (B, T, C), each with a gated share of the one before it; a row's first has none."""
        before = None if cache is None else cache.previous_embedding
        first = mx.zeros_like(embedded[:, :1]) if before is None else before
        if ragged is None:
            previous = mx.concatenate([first, embedded[:, :-1]], axis=1)
        else:
            previous = mx.concatenate([first, embedded], axis=1)[:, ragged.previous + 1]
        gate = mx.sigmoid(self.smear_gate(embedded[..., :SMEAR_CHANNELS]))
        if cache is not None:
            cache.previous_embedding = embedded[:, -1:]
            if cache.starts is not None:
                position = cache.offset + mx.arange(embedded.shape[1])
                gate = gate * (position > cache.starts[:, None])[..., None]
        return embedded + scaled(gate * previous, self.smear_lambda)


def load_weights(model: GPT, path: Path) -> None:
    """Set every parameter from a safetensors file.

    Raises:
        StageError: the file's names or shapes are not exactly the model's.
    """
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict), "a safetensors file is a dictionary"
    model.set_parameters(loaded)


def _check_names_and_shapes(config: GPTConfig, parameters: dict[str, mx.array]) -> None:
    expected = config.parameter_shapes()
    missing = [name for name in expected if name not in parameters]
    unknown = [name for name in parameters if name not in expected]
    if missing or unknown:
        raise StageError(
            f"the weights are not those of this model: missing {missing or 'none'}, unknown {unknown or 'none'}"
        )
    for name, shape in expected.items():
        found = parameters[name].shape
        if tuple(found) != shape:
            raise StageError(f"weight `{name}` has shape {tuple(found)}, but the model needs {shape}")
