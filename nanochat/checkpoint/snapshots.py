"""Checkpoints of a running stage: groups of arrays and a JSON state, verified by sha256 before they are used.

A checkpoint is a folder `step_00000123` with one safetensors file per group, `state.json`, whatever `fill` writes,
and `manifest.json` (format version, size and digest of every other file), written last. Not here: what the arrays mean.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors.numpy import load_file, save

from nanochat.checkpoint.arrays import write_arrays
from nanochat.errors import StageError
from nanochat.storage.files import new_folder, sha256_of_file, write_bytes, write_text

FORMAT = 1
_NAME = re.compile(r"^step_(\d{8,})$")

Arrays = Mapping[str, mx.array] | Mapping[str, np.ndarray]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size_bytes: int


class _Version(BaseModel):
    """What every version's manifest has."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    files: dict[str, _File]


@dataclass(frozen=True)
class CheckpointView:
    """A verified checkpoint; arrays are read when asked for."""

    path: Path
    step: int
    state: dict[str, JsonValue]

    def arrays(self, group: str) -> dict[str, mx.array]:
        """Return a group of MLX arrays, read into memory."""
        loaded = mx.load(str(self.path / f"{group}.safetensors"))
        assert isinstance(loaded, dict), "a safetensors file holds named arrays"
        mx.eval(loaded)
        return loaded

    def numpy_arrays(self, group: str) -> dict[str, np.ndarray]:
        """Return a group of numpy arrays."""
        return load_file(self.path / f"{group}.safetensors")


def save_checkpoint(
    root: Path,
    step: int,
    arrays: Mapping[str, Arrays],
    state: Mapping[str, JsonValue],
    *,
    keep: int,
    best: int | None = None,
    fill: Callable[[Path], None] | None = None,
) -> Path:
    """Write the checkpoint of a step and return its folder; older ones than the `keep` newest are deleted.

    Args:
        root: folder of the stage's checkpoints.
        step: optimizer steps done.
        arrays: group name to named arrays, all of MLX or all of numpy within a group (bfloat16 through MLX).
        state: anything JSON can hold exactly.
        keep: how many of the newest stay.
        best: step of a checkpoint that stays besides.
        fill: writes further files into the folder, such as `save_model`'s.
    """
    target = root / f"step_{step:08d}"
    with new_folder(target) as folder:
        if fill is not None:
            fill(folder)
        for group, named in arrays.items():
            _save_arrays(folder / f"{group}.safetensors", named)
        write_text(folder / "state.json", json.dumps(dict(state)), durable=False)
        write_text(folder / "manifest.json", _describe(folder).model_dump_json(indent=1), durable=False)
    _delete_old(root, newest=step, keep=keep, best=best)
    return target


def _save_arrays(path: Path, named: Arrays) -> None:
    of_mlx = {name: value for name, value in named.items() if isinstance(value, mx.array)}
    if of_mlx:
        assert len(of_mlx) == len(named), f"{path.name}: a group is all MLX or all numpy"
        write_arrays(path, of_mlx, durable=False)
    else:
        of_numpy = {name: np.ascontiguousarray(value) for name, value in named.items()}
        # Through Python's file, for safetensors' own writer says a full disk by an exception without errno.
        write_bytes(path, save(of_numpy), durable=False)


def _describe(folder: Path) -> _Manifest:
    paths = sorted(folder.iterdir())
    files = {path.name: _File(sha256=sha256_of_file(path), size_bytes=path.stat().st_size) for path in paths}
    return _Manifest(format=FORMAT, files=files)


def _delete_old(root: Path, *, newest: int, keep: int, best: int | None) -> None:
    """Keep `newest`, the ones just before it, and `best`; later ones are damaged leftovers of an abandoned future."""
    found = list_checkpoints(root)
    kept = {step for step in sorted(found, reverse=True) if step <= newest}
    kept = set(sorted(kept, reverse=True)[:keep]) | ({best} if best is not None else set())
    for step, path in found.items():
        if step > newest or step not in kept:
            shutil.rmtree(path)


def list_checkpoints(root: Path) -> dict[int, Path]:
    """Return the checkpoint folders by step, verified or not."""
    found = {}
    for path in root.iterdir() if root.is_dir() else ():
        match = _NAME.match(path.name)
        if match is not None and path.is_dir():
            found[int(match[1])] = path
    return found


def latest_checkpoint(root: Path, on_damage: Callable[[str], None] = lambda _: None) -> CheckpointView | None:
    """Return the newest checkpoint that verifies, or None; `on_damage` hears of each newer one.

    Raises:
        StageError: one was written by a later version: to pass it over would throw that work away.
    """
    found = sorted(list_checkpoints(root).items(), reverse=True)
    for step, path in found:
        _refuse_later_format(path)
        problem = find_damage(path)
        if problem is None:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return CheckpointView(path=path, step=step, state=state)
        then = "begins anew" if path == found[-1][1] else "trying the one before it"
        on_damage(f"checkpoint {path} is damaged ({problem}); {then}")
    return None


def _refuse_later_format(path: Path) -> None:
    try:
        written = _Version.model_validate_json((path / "manifest.json").read_bytes()).format
    except (FileNotFoundError, ValidationError):
        return
    if written > FORMAT:
        raise StageError(
            f"checkpoint {path} has format {written} and this version reads up to {FORMAT}: a later version of "
            "nanochat wrote it\n"
            "  use that version, or delete this folder to go on from the checkpoint before it"
        )


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None where every file is as it was written."""
    try:
        manifest = _Manifest.model_validate_json((path / "manifest.json").read_bytes())
    except FileNotFoundError:
        return "manifest.json is missing"
    except ValidationError:
        return "manifest.json cannot be read"
    if manifest.format != FORMAT:
        return f"format {manifest.format}, this version reads {FORMAT}"
    if "state.json" not in manifest.files:
        return "the manifest lacks state.json"
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected.size_bytes:
            return f"{name} has {file.stat().st_size} bytes, not {expected.size_bytes}"
        if sha256_of_file(file) != expected.sha256:
            return f"{name} has changed since it was written"
    return None
