"""Sums of gradients over micro-batches, and the norm of all gradients; with kernels on CUDA."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS, Kernel, elementwise
from nanochat.model.device import runs_kernels

_ADD = elementwise("add_gradient", ("sum", "gradient"), "total", "sum + gradient")
_VECTORS_PER_BLOCK = 8 * THREADS
_MAX_ARRAYS = 256
"""A kernel's arguments may have 4,096 bytes."""


def added(sums: dict[str, mx.array], gradients: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return float32 sums, name -> array, of the sums so far, which are empty at first, and more gradients."""
    if not sums:
        return {name: gradient.astype(mx.float32) for name, gradient in gradients.items()}
    return {name: _added(sums[name], gradient) for name, gradient in gradients.items()}


def _added(total: mx.array, gradient: mx.array) -> mx.array:
    if gradient.size % 8 == 0 and runs_kernels():
        return _ADD.map(total, gradient, dtypes=[mx.float32])[0]
    return total + gradient.astype(mx.float32)


def grad_norm(gradients: Sequence[mx.array]) -> mx.array:
    """Return the float32 norm of all values of all arrays. On CUDA one kernel reads them, not three for each array."""
    by_kernel: dict[mx.Dtype, list[mx.array]] = {}
    sums: list[mx.array] = []
    for gradient in gradients:
        if gradient.size % 8 == 0 and runs_kernels():
            by_kernel.setdefault(gradient.dtype, []).append(gradient)
        else:
            sums.append(mx.square(gradient.astype(mx.float32)).sum())
    for arrays in by_kernel.values():
        sums += (_sum_of_squares(arrays[i : i + _MAX_ARRAYS]) for i in range(0, len(arrays), _MAX_ARRAYS))
    return mx.sqrt(mx.stack(sums).sum())


def _sum_of_squares(arrays: list[mx.array]) -> mx.array:
    vectors = tuple(array.size // 8 for array in arrays)
    blocks = sum(-(-count // _VECTORS_PER_BLOCK) for count in vectors)
    (sums,) = _kernel(vectors)(*arrays, sizes=[], blocks=blocks, shapes=[(blocks,)], dtypes=[mx.float32])
    return sums.sum()


@functools.cache
def _kernel(vectors: tuple[int, ...]) -> Kernel:
    """Return a kernel for arrays of these numbers of vectors, each of which has blocks of its own."""
    names = tuple(f"array{i}" for i in range(len(vectors)))
    ends = list(itertools.accumulate(-(-count // _VECTORS_PER_BLOCK) for count in vectors))
    body = "  const auto* from = array0;\n  int block = blockIdx.x, vectors = 0;\n"
    for name, count, begin, end in zip(names, vectors, [0, *ends], ends, strict=False):
        chosen = f"{{ from = {name}; vectors = {count}; block -= {begin}; }}"
        body += f"  {'else ' if begin else ''}if (block < {end}) {chosen}\n"
    body += f"""
  float total = 0.f;
  const int begin = block * {_VECTORS_PER_BLOCK} + threadIdx.x;
#pragma unroll
  for (int i = 0; i < {_VECTORS_PER_BLOCK // THREADS}; ++i) {{
    const int vector = begin + i * {THREADS};
    if (vector < vectors) {{
      float values[8];
      nanochat::load(from + (size_t)vector * nanochat::VECTOR, values);
#pragma unroll
      for (int e = 0; e < 8; ++e) total += values[e] * values[e];
    }}
  }}
  total = nanochat::sum_over_block(total);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
"""
    return Kernel("sum_of_squares", names, ("sums",), (), body)
