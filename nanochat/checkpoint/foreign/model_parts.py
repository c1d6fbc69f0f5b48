"""Finds the parts of a foreign model: weights, configuration and tokenizer, from the path that a user gives.

nanochat    model_STEP.pt and meta_STEP.json, tokenizer.pkl next to them or in `tokenizer/` of the base folder
transformers, mlx-lm    a folder with config.json of type `nanochat`, *.safetensors and tokenizer.json
NanoChat MLX, `nanochat-run export --format torch`    a .safetensors file and its configuration
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.checkpoint.foreign.pickled_tokenizer import read_pickled_tokenizer
from nanochat.errors import PreflightError
from nanochat.storage.given_json import read_object
from nanochat.storage.layout import TOKENIZER_FILE
from nanochat.tokenizer.bpe import Tokenizer

_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer.json", "tokenizer.pkl")
_CHECKPOINT = re.compile(r"model_(\d+)\.pt")


@dataclass(frozen=True)
class ForeignModel:
    """The files of a model."""

    weights: tuple[Path, ...]
    config: Path
    tokenizer: Path


def find_parts(path: Path, *, config: Path | None, tokenizer: Path | None) -> ForeignModel:
    """Return the files of the model at `path`, a file of weights or a folder; given ones are taken as they are.

    Raises:
        PreflightError: something is missing; the message says what was searched.
    """
    if not path.exists():
        raise PreflightError(f"{path}: no such file or folder")
    weights = _weights(path)
    if tokenizer is not None and not tokenizer.exists():
        raise PreflightError(f"{tokenizer}: no such file; name the tokenizer's file, or the folder that contains it")
    return ForeignModel(weights, config or _config(weights[0]), _tokenizer_file(tokenizer or weights[0].parent))


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a file: tokenizer.pkl of PyTorch nanochat, a tokenizer.json, or a tokenizer.model."""
    if path.suffix == ".pkl":
        return Tokenizer(read_pickled_tokenizer(path))
    return Tokenizer.load(path)


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file. A PreflightError says that it is missing or damaged."""
    if not path.exists():
        raise PreflightError(f"there is no file {path}; give the configuration with `--config FILE`")
    return read_object(path)


def _weights(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    checkpoints = sorted(path.glob("model_*.pt"), key=lambda file: file.name)
    checkpoints = [file for file in checkpoints if _CHECKPOINT.fullmatch(file.name)]
    if checkpoints:
        return (max(checkpoints, key=lambda file: int(file.stem.removeprefix("model_"))),)
    tensors = tuple(sorted(path.glob("model*.safetensors")))
    if not tensors:
        raise PreflightError(f"{path} has neither model_*.pt nor model*.safetensors")
    return tensors


def _config(weights: Path) -> Path:
    """Return the configuration that belongs to a file of weights."""
    own = [
        weights.with_name(weights.name.replace("model_", "meta_", 1)).with_suffix(".json"),
        weights.with_suffix(".json"),
        weights.with_name("config.json"),
    ]
    for candidate in own:
        if candidate.is_file() and candidate != weights:
            return candidate
    searched = ", ".join(file.name for file in own)
    raise PreflightError(f"no configuration of {weights} found: looked for {searched}; give it with `--config FILE`")


def _tokenizer_file(place: Path) -> Path:
    """Return the tokenizer's file: `place` itself, in it, or where PyTorch nanochat keeps it."""
    if place.is_file():
        return place
    # base_checkpoints/d12/model_*.pt has its tokenizer in tokenizer/ of the same base folder
    folders = [place, place / "tokenizer", place.resolve().parent.parent / "tokenizer"]
    for folder in folders:
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                return folder / name
    searched = ", ".join(str(folder) for folder in folders)
    raise PreflightError(
        f"no tokenizer found: looked for {', '.join(_TOKENIZER_FILES)} in {searched}; name it with `--tokenizer FILE`"
    )
