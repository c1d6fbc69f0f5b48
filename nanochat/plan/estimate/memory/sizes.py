"""Sizes that several estimates share: values, the process itself, a model's weights and the optimizer's state.

On a CPU the size of the whole process is measured, so the process and the slack of its heap are added. On a GPU only
arrays count. float32 stands for a CPU and bfloat16 for a GPU, as `run.dtype: auto` chooses them. `tests/plan` compares
the formulas with measured peaks, which `tests/benchmarks/memory.py` measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nanochat.model.config import GPTConfig
from nanochat.optim.groups import MuonGroup, OptimizerConfig, build_groups

Dtype = Literal["float32", "bfloat16"]

VALUE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
PROCESS_BYTES: dict[Dtype, int] = {"float32": 100 * 2**20, "bfloat16": 96 * 2**20}
"""CPU: Python with numpy, MLX, BLAS and SentencePiece, and the loader's buffers. GPU: workspaces of kernels."""
PARQUET_BYTES = 48 * 2**20
"""Added for a process that reads parquet: pyarrow and a row group."""
HEAP_SLACK: dict[Dtype, float] = {"float32": 1.25, "bfloat16": 1.1}
"""Measured memory relative to the arrays counted. A CPU process keeps freed pages in pieces that do not fit the next
request. A GPU frees arrays only when the work that was queued on them is done."""
LOGIT_VALUES = 2**18
"""Logits that exist at a time on a CPU, and as many gradients. A GPU receives all chunks of a step at once."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of a training step on some device: what does not depend on the micro-batch, and what each row adds."""

    weights: int
    """With a copy in the compute dtype, if that is not float32."""
    gradients: int
    """Of one micro-batch, in the compute dtype."""
    optimizer_state: int
    per_row: int
    """Without logits."""
    logits_per_row: int
    peak_of: Callable[[TrainingMemory, int, bool], int]
    """How the peak follows from these on the device."""

    def peak(self, rows: int, *, accumulates: bool) -> int:
        """Return the peak with micro-batches of `rows` rows; a step has several of them if it `accumulates`."""
        return self.peak_of(self, rows, accumulates)


def process_peak(arrays: int, dtype: Dtype) -> int:
    """Return the peak that is measured if all arrays together have `arrays` bytes."""
    return PROCESS_BYTES[dtype] + round(HEAP_SLACK[dtype] * arrays)


def optimizer_state_bytes(config: GPTConfig) -> int:
    """Return the optimizer's state: Muon's momentum and its second moment per row or column, AdamW's two moments."""
    shapes = config.parameter_shapes()
    values = 0
    for group in build_groups(config, OptimizerConfig(), tokens_per_step=1):
        is_muon = isinstance(group, MuonGroup)
        for name in group.names:
            size = math.prod(shapes[name])
            values += size + max(shapes[name]) if is_muon else 2 * size
    return 4 * values


def checkpoint_bytes(config: GPTConfig) -> int:
    """Return the size of one training checkpoint: fp32 weights and optimizer state."""
    return 4 * config.num_parameters() + optimizer_state_bytes(config)


def kept_bytes(config: GPTConfig, dtype: Dtype, *, widths: float, shared_widths: float) -> int:
    """Return the bytes per token of what a block keeps for its backward pass.

    In units of the width, of which `shared_widths` count by the share of key/value heads.
    """
    return round(config.n_embd * (widths + shared_widths * config.n_kv_head / config.n_head) * VALUE_BYTES[dtype])


def stream_bytes(config: GPTConfig) -> int:
    """Return the bytes per token outside the blocks: embedding, x0, final norm and its gradient."""
    return 4 * config.n_embd * 4
