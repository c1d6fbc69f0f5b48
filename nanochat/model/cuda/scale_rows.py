"""Rows of a matrix times a factor each, rounded once."""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.cuda.launch import VECTOR_INDEX, Kernel

_SCALE_ROWS = Kernel(
    "scale_rows",
    ("x", "scales"),
    ("scaled",),
    ("vectors",),
    VECTOR_INDEX
    + """
  float values[8];
  nanochat::load(x + at, values);
  const float scale = scales[at / COLS];
#pragma unroll
  for (int e = 0; e < 8; ++e) values[e] *= scale;
  nanochat::store(scaled + at, values);
""",
)


def scale_rows(x: mx.array, scales: mx.array) -> mx.array:
    """Return x (..., C), with C a multiple of 8, whose rows are multiplied by float32 scales, one for each row."""
    return _SCALE_ROWS.map(x, scales, dtypes=[x.dtype], constants={"COLS": x.shape[-1]})[0]
