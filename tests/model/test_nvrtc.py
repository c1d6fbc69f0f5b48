"""Kernels that were compiled once are read from the base folder. The compiler itself is tested by `test_kernels`."""

import pytest

from nanochat import runtime
from nanochat.model.cuda import nvrtc

KERNEL = ("kernel source", "nanochat_test")


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that counts what it compiles, for a GPU and of a version that a test may change."""
    compiled = []
    monkeypatch.setattr(nvrtc, "_target", lambda: "sm_90")
    monkeypatch.setattr(nvrtc, "_version", lambda: "NVRTC 13.0")
    monkeypatch.setattr(nvrtc, "_compile", lambda *request: compiled.append(request) or f"code of {request}".encode())
    return compiled


def test_machine_code_is_compiled_once(compiler):
    first = nvrtc.machine_code(*KERNEL)
    assert nvrtc.machine_code(*KERNEL) == first == b"code of ('kernel source', 'nanochat_test', 'sm_90')"
    assert len(compiler) == 1


@pytest.mark.parametrize("change", ["source", "target", "version"])
def test_machine_code_of_another_source_gpu_or_compiler_is_compiled(change, compiler, monkeypatch):
    nvrtc.machine_code(*KERNEL)
    if change == "source":
        nvrtc.machine_code("other source", KERNEL[1])
    else:
        monkeypatch.setattr(nvrtc, f"_{change}", lambda: "sm_100")
        nvrtc.machine_code(*KERNEL)
    assert len(compiler) == 2


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:40] + b"?" + raw[41:], lambda raw: b""])
def test_machine_code_of_a_damaged_file_is_compiled_again(damage, compiler):
    expected = nvrtc.machine_code(*KERNEL)
    (path,) = (runtime.base_dir() / "kernels").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert nvrtc.machine_code(*KERNEL) == nvrtc.machine_code(*KERNEL) == expected
    assert len(compiler) == 2


def test_machine_code_is_compiled_where_nothing_can_be_kept(compiler):
    runtime.base_dir().write_text("a file, where the folder should be")
    assert nvrtc.machine_code(*KERNEL) == nvrtc.machine_code(*KERNEL)
    assert len(compiler) == 2
