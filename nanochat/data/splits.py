"""Which split something belongs to: by a hash of its content or name, or by the name of its file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

SPLIT_NAMES = ("auxiliary_train", "train", "validation", "valid", "val", "dev", "test")
SPLIT_PATTERN = r"^([^\[\]]+)(?:\[(-?[0-9]+)?:(-?[0-9]+)?\])?$"
"""What a recipe may write as a split: a name, and optionally a slice of its rows."""

_SYNONYMS = {"valid": "validation", "val": "validation"}


def is_held_out(key: str, held_out_frac: float) -> bool:
    """Return whether `key` belongs to the fraction held out for validation, which its sha256 alone decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56 < held_out_frac


def parse_split(split: str) -> tuple[str, slice | None]:
    """Return a split's name and the slice of its rows, None for all: `train`, `train[:500]`, `train[-50:]`."""
    match = re.match(SPLIT_PATTERN, split)
    if match is None or not split.endswith("]"):
        return split, None
    name, start, stop = match.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def split_of_file(path: PurePath) -> str | None:
    """Return the split that the name of a file or of its folder gives, or None.

    Recognised: `train-00000-of-00001.parquet`, `test.jsonl`, `sgd_validation.jsonl`, `test/part0.parquet`. `valid` and
    `val` mean `validation`. `dev` remains a split of its own, because MMLU has both.
    """
    stem = path.name.split(".", 1)[0]
    for name in SPLIT_NAMES:
        if stem == name or stem.startswith(f"{name}-") or stem.endswith((f"_{name}", f"-{name}")):
            return _SYNONYMS.get(name, name)
    folder = path.parent.name
    return _SYNONYMS.get(folder, folder) if folder in SPLIT_NAMES else None


def splits_of_files(paths: Iterable[Path]) -> dict[str | None, list[Path]]:
    """Return the files of each split, in the order given; files without a split are under None."""
    files: dict[str | None, list[Path]] = {}
    for path in paths:
        files.setdefault(split_of_file(path), []).append(path)
    return files
