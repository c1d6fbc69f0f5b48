"""Which side of a split something is on: by a hash of its content or name, or by the name of its file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

SPLIT_NAMES = ("auxiliary_train", "train", "validation", "valid", "val", "dev", "test")
SPLIT_PATTERN = r"^([^\[\]]+)(?:\[(-?[0-9]+)?:(-?[0-9]+)?\])?$"
"""What a recipe may write as a split."""
_SAME_SPLIT = {"valid": "validation", "val": "validation"}


def hash_share(key: str) -> float:
    """Return a number in [0, 1), spread evenly and fixed by `key` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56


def is_held_out(key: str, held_out_frac: float) -> bool:
    """Return whether `key` is among the share `held_out_frac` that is kept for validation."""
    return hash_share(key) < held_out_frac


def parse_split(split: str) -> tuple[str, slice | None]:
    """Return a split's name and which of its rows are meant, None for all: `train`, `train[:500]`, `train[-50:]`."""
    found = re.match(SPLIT_PATTERN, split)
    if found is None or not split.endswith("]"):
        return split, None
    name, start, stop = found.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def split_of_file(path: PurePath) -> str | None:
    """Return the split that a file's name or folder tells, None where neither does.

    Known: `train-00000-of-00001.parquet`, `test.jsonl`, `sgd_validation.jsonl`, `test/part0.parquet`. `valid` and
    `val` mean `validation`; `dev` stays what it is (MMLU has both).
    """
    stem = path.name.split(".", 1)[0]
    for name in SPLIT_NAMES:
        if stem == name or stem.startswith(f"{name}-") or stem.endswith((f"_{name}", f"-{name}")):
            return _SAME_SPLIT.get(name, name)
    parent = path.parent.name
    return _SAME_SPLIT.get(parent, parent) if parent in SPLIT_NAMES else None


def splits_of_files(paths: Iterable[Path]) -> dict[str | None, list[Path]]:
    """Return the files of each split, in the order given; those that tell none are under None."""
    found: dict[str | None, list[Path]] = {}
    for path in paths:
        found.setdefault(split_of_file(path), []).append(path)
    return found
