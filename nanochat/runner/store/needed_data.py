"""Lists the folders with data that runs and fetched recipes need: downloads and converted copies. `gc` keeps these.

A list is written before it is looked up whether the folders exist, so that `gc` never deletes one in between. The list
of a run is in its folder. The list of the last `nanochat-run fetch` of a recipe counts as long as the recipe exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nanochat.errors import PreflightError
from nanochat.runner.store.locks import claims
from nanochat.storage.files import read_file, write_text
from nanochat.storage.layout import run_folders

_FETCHED = "fetched"


def add_needed(path: Path, folders: Iterable[Path], *, base: Path, recipe: Path | None = None) -> None:
    """Add folders below `base` to the list in a file. With `recipe`, the list counts as long as this file exists.

    A damaged list is replaced.
    """
    names = {folder.relative_to(base).as_posix() for folder in folders}
    with claims(base):
        with suppress(PreflightError):
            names |= _read(path)[1]
        content = {"recipe": str(recipe.absolute()) if recipe is not None else None, "folders": sorted(names)}
        write_text(path, json.dumps(content, indent=1))


def fetched_list(recipe: Path, *, base: Path) -> Path:
    """Return the file with the list of a recipe whose data were fetched without a run."""
    return base / _FETCHED / f"{hashlib.sha256(bytes(recipe.absolute())).hexdigest()[:16]}.json"


def needed_folders(base: Path) -> set[Path]:
    """Return the folders that runs and fetched recipes need.

    Raises:
        PreflightError: a list cannot be read.
    """
    paths = [path for run in run_folders(base) if (path := run.data).exists()]
    lists = [_read(path) for path in (*paths, *_fetched_lists(base))]
    return {base / name for recipe, names in lists if recipe is None or recipe.is_file() for name in names}


def delete_stale_lists(base: Path) -> None:
    """Delete the lists of fetched recipes that no longer exist. Raises as `needed_folders`."""
    for path in _fetched_lists(base):
        recipe = _read(path)[0]
        if recipe is not None and not recipe.is_file():
            path.unlink()


def _fetched_lists(base: Path) -> list[Path]:
    return sorted((base / _FETCHED).glob("*.json"))


def _read(path: Path) -> tuple[Path | None, set[str]]:
    """Return the recipe for which a list counts, or None, and the names of the folders."""
    try:
        content = json.loads(read_file(path))
        recipe = content["recipe"]
        return None if recipe is None else Path(recipe), {str(name) for name in content["folders"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreflightError(
            f"{path} cannot be read, so it is unknown which data are needed; delete it if you do not need them"
        ) from error
