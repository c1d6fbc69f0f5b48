"""A child process that imports MLX, multiplies matrices and prints what it found, so that a crash is only a finding."""

from __future__ import annotations

import time

from pydantic import BaseModel

from nanochat import runtime

_SIZES = {"cpu": 512, "cuda": 8192, "metal": 4096}
"""Rows of the square matrices: a fraction of a second each, even with a slow BLAS."""
_REPEATS = 5


class Probe(BaseModel):
    """The properties of MLX on this machine."""

    backend: runtime.Backend
    device: str
    dtype: str
    blas: str
    has_fast_blas: bool
    threads: int
    size: int
    gflops: float
    """Arithmetic operations per second of the fastest of a few matrix products, in units of 10^9."""


def main() -> None:
    """Print the findings as JSON."""
    chosen = runtime.prepare()
    import mlx.core as mx

    from nanochat.model.device import select_device

    select_device(chosen.backend)
    size, dtype = _SIZES[chosen.backend], mx.bfloat16 if chosen.dtype == "bfloat16" else mx.float32
    matrix = mx.random.normal((size, size)).astype(dtype)
    mx.eval(matrix @ matrix)
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        mx.eval(matrix @ matrix)
        seconds.append(time.perf_counter() - began)
    probe = Probe(
        backend=chosen.backend,
        device=str(mx.default_device()),
        dtype=chosen.dtype,
        blas=chosen.blas,
        has_fast_blas=chosen.blas != runtime.NO_BLAS,
        threads=chosen.threads,
        size=size,
        gflops=2 * size**3 / min(seconds) / 1e9,
    )
    print(probe.model_dump_json())  # noqa: T201 -- for the parent


if __name__ == "__main__":
    main()
