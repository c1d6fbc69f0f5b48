"""The one place that chooses an implementation for the device: attention, the whole forward pass, the loss.

    |                       | CPU                           | Metal             | CUDA                           |
    | attention, whole rows | `block_attention` with        | `block_attention` | `fused_attention` where it has |
    |                       | `cpu.attention` (float32)     |                   | gradients, else blocks         |
    | attention with cache  | the same, from 16 queries on, | `fused_attention` | `fused_attention`              |
    |                       | else `fused_attention`        |                   |                                |
    | forward pass          | `gpt.GPT`                     | `gpt.GPT`         | `cuda.forward`, but `gpt.GPT`  |
    |                       |                               |                   | when blocks are recomputed     |
    | one token of each row | `cpu.decoding` (float32)      | `gpt.GPT`         | `cuda.decoding`, for up to 32  |
    |                       |                               |                   | rows, else `cuda.forward`      |
    | rows without padding  | `ragged.attention.row_by_row` | `by_group`        | `by_group`                     |
    | loss                  | `cpu.softcap_loss`            | `loss`            | `cuda.softcap_loss`            |
    | training              | `cpu.training` (float32)      | MLX's gradients   | MLX's gradients                |

`NANOCHAT_KERNELS=mlx` chooses Metal's column on every device (`device.implementation`).

Every choice computes what `gpt.GPT` and `loss.plain_losses` write out. `FastGPT` is the model that training, inference
and evaluation use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from nanochat.model.config import GPTConfig
from nanochat.model.cpu import attention as cpu_attention
from nanochat.model.cpu import decoding as cpu_step
from nanochat.model.cpu import softcap_loss as cpu_loss
from nanochat.model.cpu.training import mlx_arrays as cpu_training
from nanochat.model.cuda import forward as cuda_forward
from nanochat.model.cuda import softcap_loss as cuda_loss
from nanochat.model.cuda.decoding import forward as cuda_decoding
from nanochat.model.device import runs_kernels, runs_on_cpu
from nanochat.model.fused_attention import fused_attention, has_fused_gradient
from nanochat.model.gpt import GPT
from nanochat.model.layers import Block, Cache
from nanochat.model.low_memory import loss, recompute
from nanochat.model.low_memory.block_attention import PLAIN, block_attention
from nanochat.model.ragged import forward as ragged_forward
from nanochat.model.ragged.attention import by_group, row_by_row
from nanochat.model.ragged.ragged_rows import Ragged

_MIN_CPU_QUERIES = 16
"""With fewer queries the CPU's attention costs more in extra operations than it saves in exponentials."""


def attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return what `layers.attention` does, computed by the fastest form for the device."""
    if runs_on_cpu() and queries.dtype == mx.float32 and queries.shape[2] >= _MIN_CPU_QUERIES:
        return block_attention(queries, keys, values, window=window, form=cpu_attention.FORM)
    is_training_shape = 1 < queries.shape[2] == keys.shape[2]
    if is_training_shape and not has_fused_gradient(queries, window):
        return block_attention(queries, keys, values, window=window, form=PLAIN)
    return fused_attention(queries, keys, values, window=window)


_TABLES = ("transformer.wte.", "value_embeds.")


class BufferedCache(Cache, Protocol):
    """A cache of buffers, to which each pass adds one position per row."""

    @property
    def offset(self) -> mx.array:
        """(B,) int32."""
        ...

    @property
    def previous(self) -> mx.array:
        """(B,) int32, the newest token of each row, -1 if there is none."""
        ...

    @property
    def buffers(self) -> Sequence[tuple[mx.array, mx.array]]:
        """Each layer's keys and values, (B, G, S, D); position p is at index p % S."""
        ...


class FastGPT(GPT):
    """A GPT whose methods run the fastest implementation for the device; same parameters, same results up to rounding.

    It inherits because it *is* the reference model with some methods replaced: whatever it does not replace runs as
    `gpt` writes it.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, attention, recompute.squared_relu)
        self._fused_qkv: list[mx.array] = []

    @property
    def fused_qkv(self) -> Sequence[mx.array]:
        """Each layer's query, key, value and gate weights as one matrix, made by `cast_matrices`; empty otherwise.

        Also empty if activations and matrices differ in dtype: matrices are then cast at each use.
        """
        fits = self._fused_qkv and self._fused_qkv[0].dtype == self.compute_dtype
        return self._fused_qkv if fits else []

    def set_parameters(self, parameters: dict[str, mx.array]) -> None:
        """Replace every parameter, as `GPT.set_parameters` does, and forget the fused matrices."""
        super().set_parameters(parameters)
        self._fused_qkv = []

    def cast_matrices(self, dtype: mx.Dtype) -> None:
        """Store matrices and tables in `dtype` for inference and, if the CUDA forward pass runs, fuse projections."""
        super().cast_matrices(dtype)
        if cuda_forward.applies(self.config):
            self._fused_qkv = [cuda_forward.fuse_qkv(block.attn, dtype) for block in self.transformer.h]

    def hidden(self, idx: mx.array, cache: Cache | None = None) -> mx.array:
        """Return the final normed residual stream, (B, T, C) in the compute dtype."""
        if runs_cuda_forward(self):
            return cuda_forward.hidden(self, idx, cache, attend=attention, fused_qkv=self.fused_qkv)
        return super().hidden(idx, cache)

    def run_block(self, block: Block, x: mx.array, value_rows: mx.array | None, cache: Cache | None) -> mx.array:
        """Return the residual stream (B, T, C) after a block, whose weight gradients are not postponed."""
        if cache is not None or self.recomputes_blocks:
            return super().run_block(block, x, value_rows, cache)
        return recompute.ordered(block, x) if value_rows is None else recompute.ordered(block, x, value_rows)

    def next_logits(self, tokens: mx.array, cache: BufferedCache, *, vocab_size: int) -> mx.array:
        """Return float32 logits (B, vocab_size) of what follows tokens (B,), one of each row, which join the cache.

        The buffers may be changed in place: the caller evaluates the logits before it does anything else with them
        (`cuda.decoding.forward` says why).
        """
        is_fused = bool(self.fused_qkv) and cuda_decoding.applies(self.config, tokens.size)
        if not is_fused and not (runs_on_cpu() and cpu_step.applies(self)):
            return self.logits(self.hidden(tokens[:, None], cache)[:, -1])[:, :vocab_size]
        newest, positions = cache.previous, cache.offset
        cache.advance(tokens[:, None])
        if is_fused:
            inputs = cuda_decoding.Inputs(tokens, newest, positions)
            return cuda_decoding.next_logits(
                self, inputs, cache.buffers, fused_qkv=self.fused_qkv, vocab_size=vocab_size
            )
        return cpu_step.next_logits(self, tokens, newest, positions, cache.buffers, vocab_size=vocab_size)

    def hidden_ragged(self, rows: Ragged) -> mx.array:
        """Return the final normed residual stream (N, C) of rows without padding, in the compute dtype."""
        return ragged_forward.hidden(self, rows, attend=row_by_row if runs_on_cpu() else by_group)

    def target_logprobs(self, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        """Return each target's log-probability after its hidden state, and whether it is the likeliest token.

        Of equally likely tokens the first counts as the likeliest. Shapes: hidden (N, C), targets and both results
        (N,), float32 and bool. On a CPU, pass few rows at a time (`fast_math.BLOCK_ELEMENTS` logits).
        """
        target_logprobs = cpu_loss.target_logprobs if runs_on_cpu() else loss.target_logprobs
        return target_logprobs(hidden, self.lm_head.weight[: self.config.vocab_size], targets)


def runs_cuda_forward(model: GPT) -> bool:
    """Return whether training and scoring run the forward pass of CUDA kernels."""
    return cuda_forward.applies(model.config) and not model.recomputes_blocks


def is_worth_compiling(model: GPT) -> bool:
    """Return whether `mx.compile` makes the passes of training faster.

    Compiled operations are slower on a CPU. CUDA takes seconds to compile each operation that MLX fuses. The plain
    forms have many of these. The forward pass of our kernels has none, except for smear and backout. It is compiled
    because Python builds the graph of a step more slowly than the GPU computes it.
    """
    if runs_on_cpu() or not runs_kernels():
        return not runs_on_cpu()
    config = model.config
    row = mx.zeros((1, 1, config.sequence_len, config.head_dim), model.compute_dtype)
    is_fused = runs_cuda_forward(model) and all(has_fused_gradient(row, window) for window in config.windows)
    return is_fused and not config.variant.has_smear


def working_parameters(model: GPT, parameters: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return the parameters as the passes of a training step read them: matrices in the compute dtype.

    They are cast once per step. The CUDA forward pass reads only rows of embedding tables and rounds those itself.
    """
    dtype = model.compute_dtype
    reads_rows = runs_cuda_forward(model)
    return {
        name: x if x.ndim == 1 or (reads_rows and name.startswith(_TABLES)) else x.astype(dtype)
        for name, x in parameters.items()
    }


def token_losses(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    """Return each target's cross-entropy -ln p(target), float32 (B, T), in nats; 0 where the target is -1.

    For evaluation: it raises if it is differentiated. Tokens `idx` and `targets` are (B, T).
    """
    hidden, weight, flat_targets = _flattened(model, idx, targets)
    losses = loss.chunked_losses(_loss_kernels(), model.config.vocab_size)
    return losses(hidden, weight, flat_targets).reshape(targets.shape)


def summed_loss(model: GPT, idx: mx.array, targets: mx.array, weights: mx.array | None = None) -> mx.array:
    """Return the float32 sum of the cross-entropy over all targets that are not -1; for training.

    With `weights` (B, T), float32, each target's cross-entropy counts as often as its weight says, which may be
    negative. Gradients are computed together with the loss, chunk by chunk; for the loss alone `token_losses` is
    cheaper.
    """
    hidden, weight, flat_targets = _flattened(model, idx, targets)
    factors = () if weights is None else (weights.reshape(-1),)
    return loss.chunked_sum(_loss_kernels(), model.config.vocab_size)(hidden, weight, flat_targets, *factors)[0]


def token_logprobs(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    """Return each target's log-probability, float32 (B, T), with float32 logits in any compute dtype; 0 where it is -1.

    bfloat16 logits are off by up to 0.03, which is more than a policy moves in a step.
    """
    hidden, weight = model.hidden(idx), model.lm_head.weight[: model.config.vocab_size]
    losses = loss.chunked_losses(cpu_loss.KERNELS if runs_on_cpu() else loss.KERNELS, model.config.vocab_size)
    rows = hidden.reshape(-1, hidden.shape[-1]).astype(mx.float32)
    return -losses(rows, weight.astype(mx.float32), targets.reshape(-1)).reshape(targets.shape)


def loss_and_gradients(
    model: GPT, parameters: dict[str, mx.array], idx: mx.array, targets: mx.array, scale: mx.array
) -> tuple[mx.array, dict[str, mx.array]] | None:
    """Return `scale` times `summed_loss` and its gradients without MLX's differentiation; None where that is faster.

    A `scale` (B, T) is the `weights` of `summed_loss`.
    """
    is_on_cpu = isinstance(model, FastGPT) and runs_on_cpu() and model.compute_dtype == mx.float32
    if not is_on_cpu or not cpu_training.has_fast_blas():
        return None
    return cpu_training.loss_and_gradients(
        model.config, parameters, idx, targets, scale, recomputes=model.recomputes_blocks
    )


def _loss_kernels() -> loss.LossKernels:
    return cuda_loss.KERNELS if runs_kernels() else cpu_loss.KERNELS if runs_on_cpu() else loss.KERNELS


def _flattened(model: GPT, idx: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return final hidden states (N, C), lm_head's weight as the loss kernels take it, and targets (N,)."""
    hidden = model.hidden(idx)
    weight = model.lm_head.weight
    # CUDA's kernel skips the rows that pad the vocabulary; elsewhere they are cut off.
    weight = weight.astype(hidden.dtype) if runs_kernels() else weight[: model.config.vocab_size]
    return hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1)
