"""Saves and loads checkpoints of a running stage: groups of arrays and a JSON state.

A checkpoint is a folder such as `step_00000123`. It holds one safetensors file per group, `state.json`, and other files
of the caller. Its `manifest.json` lists the size and sha256 of every file. If a file does not match, the checkpoint
before it is used. Not here: what the arrays mean.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from pydantic import JsonValue
from safetensors.numpy import load_file, save

from nanochat.checkpoint.arrays import write_arrays
from nanochat.errors import StageError
from nanochat.storage.files import new_folder, write_bytes, write_text
from nanochat.storage.integrity import MANIFEST_FILE, find_change, read_manifest, write_manifest
from nanochat.storage.layout import checkpoint_folder, list_checkpoints

FORMAT = 2

Arrays = Mapping[str, mx.array] | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CheckpointView:
    """A verified checkpoint. Its arrays are read on request."""

    path: Path
    step: int
    state: dict[str, JsonValue]

    def arrays(self, group: str) -> dict[str, mx.array]:
        """Read and return a group of MLX arrays."""
        loaded = mx.load(str(self.path / f"{group}.safetensors"))
        assert isinstance(loaded, dict), "a safetensors file holds named arrays"
        mx.eval(loaded)
        return loaded

    def numpy_arrays(self, group: str) -> dict[str, np.ndarray]:
        """Read and return a group of numpy arrays."""
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
    """Write the checkpoint of a step and return its folder. All but the `keep` newest checkpoints are deleted.

    Args:
        root: the folder of all checkpoints of the stage.
        step: the number of finished optimizer steps.
        arrays: named arrays by group. A group has MLX arrays or numpy arrays; numpy has no bfloat16.
        state: values that JSON represents exactly.
        keep: how many of the newest checkpoints to keep.
        best: the step of another checkpoint to keep.
        fill: writes more files into the folder, for example `write_model_files`.
    """
    target = checkpoint_folder(root, step)
    with new_folder(target) as folder:
        if fill is not None:
            fill(folder)
        for group, named in arrays.items():
            _save_arrays(folder / f"{group}.safetensors", named)
        write_text(folder / "state.json", json.dumps(dict(state)), durable=False)
        write_manifest(folder, file_format=FORMAT)
    _delete_old(root, newest=step, keep=keep, best=best)
    return target


def _save_arrays(path: Path, named: Arrays) -> None:
    of_mlx = {name: value for name, value in named.items() if isinstance(value, mx.array)}
    if of_mlx:
        assert len(of_mlx) == len(named), f"{path.name}: a group is all MLX or all numpy"
        write_arrays(path, of_mlx, durable=False)
    else:
        of_numpy = {name: np.ascontiguousarray(value) for name, value in named.items()}
        # safetensors' own file writer raises an exception without errno if the disk is full.
        write_bytes(path, save(of_numpy), durable=False)


def _delete_old(root: Path, *, newest: int, keep: int, best: int | None) -> None:
    """Keep `best` and the `keep` last ones up to `newest`. Later ones are damaged and were skipped when resuming."""
    checkpoints = list_checkpoints(root)
    kept = {step for step in sorted(checkpoints, reverse=True) if step <= newest}
    kept = set(sorted(kept, reverse=True)[:keep]) | ({best} if best is not None else set())
    for step, path in checkpoints.items():
        if step > newest or step not in kept:
            shutil.rmtree(path)


def latest_checkpoint(
    root: Path,
    on_damage: Callable[[str], None] = lambda _: None,
    *,
    find_problem: Callable[[CheckpointView], str | None] = lambda _: None,
) -> CheckpointView | None:
    """Return the newest undamaged checkpoint, or None. `on_damage` gets a message about each damaged one.

    `find_problem` returns why an undamaged checkpoint cannot be used; it then counts as damaged.

    Raises:
        StageError: a later version wrote a checkpoint. Skipping it would lose its steps.
    """
    newest_first = sorted(list_checkpoints(root).items(), reverse=True)
    for step, path in newest_first:
        _refuse_later_format(path)
        problem = find_damage(path)
        if problem is None:
            view = CheckpointView(path, step, json.loads((path / "state.json").read_text(encoding="utf-8")))
            if (problem := find_problem(view)) is None:
                return view
        then = "starting over" if path == newest_first[-1][1] else "trying the one before it"
        on_damage(f"checkpoint {path} is damaged ({problem}); {then}")
    return None


def open_checkpoint(root: Path, step: int) -> CheckpointView:
    """Return the checkpoint of a step. Raises a StageError if it is damaged or missing."""
    path = checkpoint_folder(root, step)
    if (problem := find_damage(path)) is not None:
        raise StageError(
            f"checkpoint {path} is damaged ({problem}); the same command starts again from a checkpoint before it"
        )
    return CheckpointView(path, step, json.loads((path / "state.json").read_text(encoding="utf-8")))


def _refuse_later_format(path: Path) -> None:
    manifest = read_manifest(path)
    if manifest is not None and manifest.format > FORMAT:
        raise StageError(
            f"checkpoint {path} has format {manifest.format} and this version reads up to {FORMAT}: a later version of "
            "nanochat wrote it\n"
            "  use that version, or delete this folder to continue from the checkpoint before it"
        )


def find_damage(path: Path) -> str | None:
    """Return the problem with a checkpoint folder, or None if every file matches the manifest."""
    manifest = read_manifest(path)
    if manifest is None:
        return f"{MANIFEST_FILE} {'cannot be read' if (path / MANIFEST_FILE).exists() else 'is missing'}"
    if manifest.format != FORMAT:
        return f"format {manifest.format}, this version reads {FORMAT}"
    if "state.json" not in manifest.files:
        return "the manifest lacks state.json"
    for name, expected in manifest.files.items():
        if (change := find_change(path / name, expected)) is not None:
            return f"{name} {change}"
    return None
