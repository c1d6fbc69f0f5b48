"""The base folder, device, dtype and BLAS that are chosen before MLX is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.openblas import renamed_openblas


def test_base_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "elsewhere"))
    assert runtime.base_dir() == tmp_path / "elsewhere"


def test_base_dir_is_in_the_users_cache_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.base_dir() == tmp_path / ".cache" / "nanochat"


def test_prepare_chooses_the_dtype_of_the_backend(monkeypatch):
    """A CPU computes in float32 and a GPU in bfloat16, unless the recipe names a dtype.

    No GPU may round float32 to the 11 bits of TF32: NVIDIA's do, and Apple's from M5 on.
    """
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    assert runtime.prepare("cpu").dtype == "float32"
    assert runtime.prepare("cpu", "bfloat16").dtype == "bfloat16"
    monkeypatch.setattr(runtime, "backend_of_machine", lambda: "metal")
    assert runtime.prepare("gpu", threads=3).dtype == "bfloat16"
    assert runtime.environment("MLX_ENABLE_TF32") == "1"
    assert runtime.prepare("gpu", "float32", threads=3).dtype == "float32"
    assert runtime.environment("MLX_ENABLE_TF32") == "0"


@pytest.mark.parametrize("given", [None, "700"])
def test_prepare_limits_the_work_in_flight_of_training_on_cuda(monkeypatch, given):
    """It keeps the user's own limit, and sets none for other backends and for processes that do not train."""
    name = "MLX_MAX_MB_PER_BUFFER"
    monkeypatch.setenv(name, "set and deleted, so that it is restored")
    monkeypatch.delenv(name)
    monkeypatch.setattr(runtime, "_prepared", {})
    for backend, trains in (("metal", True), ("cuda", False)):
        monkeypatch.setattr(runtime, "backend_of_machine", lambda backend=backend: backend)
        runtime.prepare(trains=trains)
        assert runtime.environment(name) is None
    if given is not None:
        monkeypatch.setenv(name, given)
    monkeypatch.setattr(runtime, "_prepared", {})
    runtime.prepare(trains=True)
    assert runtime.environment(name) == (given or "300")


def test_prepare_refuses_a_missing_gpu(monkeypatch):
    monkeypatch.setattr(runtime, "backend_of_machine", lambda: "cpu")
    with pytest.raises(PreflightError, match=r"run\.device: gpu.*mlx\[cuda13\]"):
        runtime.prepare("gpu", threads=2)


def test_prepare_refuses_unknown_kernels(monkeypatch):
    monkeypatch.setenv("NANOCHAT_KERNELS", "none")
    with pytest.raises(PreflightError, match="NANOCHAT_KERNELS is 'none', but must be `auto` or `mlx`"):
        runtime.prepare("cpu", threads=2)


def test_prepare_does_not_import_mlx():
    """The BLAS must be loaded before MLX."""
    code = "import sys; from nanochat import runtime; runtime.prepare('cpu'); sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have their own BLAS")
def test_prepare_loads_a_fast_blas(tmp_path):
    """`cblas_sgemm` is then a symbol of an optimised library; a damaged library is skipped."""
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    code = (
        "import ctypes; from nanochat import runtime; r = runtime.prepare('cpu'); print(r.blas);"
        "print(hasattr(ctypes.CDLL(None), 'cblas_sgemm'))"
    )
    environment = {**os.environ, "NANOCHAT_BLAS": str(broken), "NANOCHAT_BASE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    label, visible = done.stdout.split("\n")[:2]
    assert "BLAS" in label or label == "MKL"
    assert "reference" not in label
    assert visible == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have their own BLAS")
@pytest.mark.parametrize("damage", ["cut", "flipped", "lost", "description lost", "description flipped"])
def test_damaged_copy_of_the_blas_is_made_again(tmp_path, monkeypatch, damage):
    """Otherwise MLX would use a slow one, whose results have other bits."""
    made = []

    def fake_patchelf(arguments, **_):
        made.append(arguments)
        Path(arguments[arguments.index("--output") + 1]).write_bytes(b"library" * 100)

    monkeypatch.setattr(subprocess, "run", fake_patchelf)
    library = renamed_openblas(lambda: tmp_path)
    assert renamed_openblas(lambda: tmp_path) == library and len(made) == 1
    description = library.with_name(f"{library.name}.json")
    stamp = library.stat().st_mtime_ns
    match damage:
        case "cut":
            os.truncate(library, 350)
        case "flipped":
            library.write_bytes(b"library" * 99 + b"librery")
            os.utime(library, ns=(stamp, stamp))
        case "lost":
            library.unlink()
        case "description lost":
            description.unlink()
        case "description flipped":
            description.write_bytes(description.read_bytes().replace(b"700", b"600"))
    assert renamed_openblas(lambda: tmp_path) == library and len(made) == 2
    assert library.read_bytes() == b"library" * 100
    assert renamed_openblas(lambda: tmp_path) == library and len(made) == 2
