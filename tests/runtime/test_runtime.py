"""What `runtime` chooses before MLX is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nanochat import runtime
from nanochat.errors import PreflightError


def test_base_dir_follows_the_environment(monkeypatch, tmp_path):
    """NANOCHAT_BASE_DIR moves every cache and run."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "elsewhere"))
    assert runtime.base_dir() == tmp_path / "elsewhere"


def test_base_dir_is_under_the_users_cache_by_default(monkeypatch, tmp_path):
    """Without the variable it is ~/.cache/nanochat."""
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.base_dir() == tmp_path / ".cache" / "nanochat"


def test_dtype_follows_the_backend(monkeypatch):
    """A CPU computes in float32, a GPU in bfloat16, unless the recipe says otherwise."""
    assert runtime.prepare("cpu").dtype == "float32"
    assert runtime.prepare("cpu", "bfloat16").dtype == "bfloat16"
    monkeypatch.setattr(runtime, "backend_of_machine", lambda: "metal")
    assert runtime.prepare("gpu", threads=3).dtype == "bfloat16"
    assert runtime.prepare("gpu", "float32", threads=3).dtype == "float32"


def test_a_missing_gpu_is_named_before_any_work(monkeypatch):
    """`run.device: gpu` on a machine without one is a preflight error that says what to do."""
    monkeypatch.setattr(runtime, "backend_of_machine", lambda: "cpu")
    with pytest.raises(PreflightError, match=r"run\.device: gpu.*mlx\[cuda13\]"):
        runtime.prepare("gpu", threads=2)


def test_runtime_imports_no_mlx():
    """The BLAS must be loaded before MLX, so `prepare` itself must not import it."""
    code = "import sys; from nanochat import runtime; runtime.prepare('cpu'); sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bring their own BLAS")
def test_a_fast_blas_takes_the_place_of_the_reference_one(tmp_path):
    """After `prepare`, `cblas_sgemm` resolves to an optimised library, and a damaged candidate is passed over."""
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
