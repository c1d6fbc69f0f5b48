"""Compiles CUDA source for this GPU with NVRTC, which MLX has loaded anyway.

The code is kept in the base folder, because each stage of a run is a process of its own and needs dozens of kernels.
Files that are missing, damaged or of another compiler or GPU are compiled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
from pathlib import Path

import mlx.core as mx

from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.storage.files import write_bytes

_OLDEST_ARCHITECTURE = 80
"""The oldest one with bfloat16. The driver translates code for it if NVRTC does not know the actual GPU."""
_DIGEST_BYTES = hashlib.sha256().digest_size


def machine_code(source: str, name: str) -> bytes:
    """Return the code of the kernel `name`, from an earlier process if there was one."""
    target = _target()
    compiled_from = "\n".join((target, _version(), source))
    key = hashlib.sha256(compiled_from.encode()).hexdigest()[:16]
    try:
        path = runtime.base_dir() / "kernels" / f"{name}-{target}-{key}"
    except PreflightError:  # no home folder
        return _compile(source, name, target)
    code = _read(path)
    if code is None:
        code = _compile(source, name, target)
        with contextlib.suppress(OSError):  # a folder that cannot be written costs only the time to compile again
            write_bytes(path, hashlib.sha256(code).digest() + code, durable=False)
    return code


def _read(path: Path) -> bytes | None:
    """Return the code in a file, or None if there is none or a byte of it has changed."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


@functools.cache
def _library() -> ctypes.CDLL:
    """Return the library of the compiler."""
    for version in ("13", "12"):
        try:
            return ctypes.CDLL(f"libnvrtc.so.{version}")
        except OSError:
            continue
    raise PreflightError(
        "NVRTC, CUDA's run-time compiler, is not installed: install `mlx[cuda13]` with its dependencies"
    )


@functools.cache
def _version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value}"


@functools.cache
def _target() -> str:
    """Return the architecture to compile for: this GPU's, or a virtual one if NVRTC does not know it."""
    info = mx.device_info()
    architecture = 10 * int(info["compute_capability_major"]) + int(info["compute_capability_minor"])
    library, count = _library(), ctypes.c_int()
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(known)
    return f"sm_{architecture}" if architecture in known else f"compute_{_OLDEST_ARCHITECTURE}"


def _compile(source: str, name: str, target: str) -> bytes:
    library, program = _library(), ctypes.c_void_p()
    created = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None)
    assert created == 0, f"NVRTC refused the program {name}: error {created}"
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={target}".encode())
    failed = library.nvrtcCompileProgram(program, len(options), options)
    what = "ProgramLog" if failed else "CUBIN" if target.startswith("sm_") else "PTX"
    size = ctypes.c_size_t()
    library[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library[f"nvrtcGet{what}"](program, text)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert not failed, f"{name} does not compile:\n{text.value.decode()}"
    return text.raw
