"""The one place that chooses an implementation for the device: attention, the whole forward pass, the loss.

    |                       | CPU                           | Metal             | CUDA                           |
    | attention             | `cpu.attention` (float32, at  | `fused_attention` | `fused_attention`              |
    |                       | least 16 queries), else fused |                   |                                |
    | forward pass          | `gpt.GPT`                     | `gpt.GPT`         | `cuda.forward`, but `gpt.GPT`  |
    |                       |                               |                   | when blocks are recomputed     |
    | rows without padding  | `ragged.attention.row_by_row` | `by_group`        | `by_group`                     |
    | loss                  | `cpu.softcap_loss`            | `loss`            | `cuda.softcap_loss`            |

Every choice computes what `gpt.GPT` and `loss.plain_losses` write out. `FastGPT` is the model that training, inference
and evaluation use.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from nanochat.model import loss
from nanochat.model.config import GPTConfig
from nanochat.model.cpu import softcap_loss as cpu_loss
from nanochat.model.cpu.attention import cpu_attention
from nanochat.model.cuda import forward as cuda_forward
from nanochat.model.cuda import softcap_loss as cuda_loss
from nanochat.model.cuda.launch import runs_kernels
from nanochat.model.device import runs_on_cpu
from nanochat.model.fused_attention import fused_attention
from nanochat.model.gpt import GPT, Cache, repeat_heads
from nanochat.model.ragged import forward as ragged_forward
from nanochat.model.ragged.attention import by_group, row_by_row
from nanochat.model.ragged.rows import Ragged

_MIN_CPU_QUERIES = 16
"""With fewer queries the CPU's attention costs more in extra operations than it saves in exponentials."""


def attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return what `gpt.attention` does, computed by the fastest form for the device."""
    if not (runs_on_cpu() and queries.dtype == mx.float32 and queries.shape[2] >= _MIN_CPU_QUERIES):
        return fused_attention(queries, keys, values, window=window)
    return cpu_attention(queries, repeat_heads(keys, queries), repeat_heads(values, queries), window=window)


class FastGPT(GPT):
    """A GPT whose methods run the fastest implementation for the device; same parameters, same results up to rounding.

    It inherits because it *is* the reference model with some methods replaced: whatever it does not replace runs as
    `gpt` writes it.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, attention)
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
        if cuda_forward.applies(self.config) and not self.recomputes_blocks:
            return cuda_forward.hidden(self, idx, cache, attend=fused_attention, fused_qkv=self.fused_qkv)
        return super().hidden(idx, cache)

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


def token_losses(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    """Return each target's cross-entropy -ln p(target), float32 (B, T), in nats; 0 where the target is -1.

    For evaluation: it raises if it is differentiated. Tokens `idx` and `targets` are (B, T).
    """
    hidden, weight, flat_targets = _flattened(model, idx, targets)
    losses = loss.chunked_losses(_loss_kernels(), model.config.vocab_size)
    return losses(hidden, weight, flat_targets).reshape(targets.shape)


def summed_loss(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    """Return the float32 sum of the cross-entropy over all targets that are not -1; for training.

    Gradients are computed together with the loss, chunk by chunk; for the loss alone `token_losses` is cheaper.
    """
    hidden, weight, flat_targets = _flattened(model, idx, targets)
    return loss.chunked_sum(_loss_kernels(), model.config.vocab_size)(hidden, weight, flat_targets)[0]


def _loss_kernels() -> loss.LossKernels:
    if runs_kernels():
        return cuda_loss.KERNELS
    if runs_on_cpu():
        return cpu_loss.KERNELS
    return loss.KERNELS


def _flattened(model: GPT, idx: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return final hidden states (N, C), lm_head's weight as the loss kernels take it, and targets (N,)."""
    hidden = model.hidden(idx)
    weight = model.lm_head.weight
    # CUDA's kernel skips the rows that pad the vocabulary; elsewhere they are cut off.
    weight = weight.astype(hidden.dtype) if runs_kernels() else weight[: model.config.vocab_size]
    return hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1)
