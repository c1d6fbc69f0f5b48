"""The lock file beside a recipe, which pins each hub data set to a commit. It is kept together with the recipe.

    hf://datasets/OWNER/NAME@REVISION: COMMIT

The key is the data set and the revision that the recipe names. Sources with the same data set and revision therefore
read the same commit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nanochat.data.hub.hub_source import HubSource
from nanochat.data.places.file_names import show
from nanochat.errors import PreflightError
from nanochat.storage.files import delete_leftovers, write_text

SUFFIX = ".lock"

_LINE = re.compile(r"(hf://datasets/[^/\s]+/[^/\s]+@\S+): ([0-9a-f]{40})")
_HEADER = """\
# The commits of the hub data sets that {recipe} reads, written at its first run; keep this file with the recipe.
# Later runs read the same data. To pin the current commits instead: --set run.data.refresh_lock=true
"""


def lock_path(recipe: Path) -> Path:
    """Return the lock file's path: `recipes/speedrun.lock` for `recipes/speedrun.yaml`."""
    return recipe.with_suffix(SUFFIX)


def lock_key(source: HubSource) -> str:
    """Return the key of a source in lock files."""
    return f"hf://datasets/{source.repository}@{source.revision}"


def read_lock(path: Path) -> dict[str, str]:
    """Return the commit of each key; without a lock file, an empty dict.

    Raises:
        PreflightError: the file cannot be read, or a line has another form; the message names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(f"{path}: cannot be read ({error}); delete it to pin the current commits") from error
    commits: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            expected = "`hf://datasets/OWNER/NAME@REVISION: COMMIT` with a commit of 40 hex digits"
            raise PreflightError(f"{path}:{number}: expected {expected}; repair the line or delete it")
        if commits.get(match[1], match[2]) != match[2]:
            raise PreflightError(f"{path}:{number}: another commit of {match[1]} than above; delete one of the lines")
        commits[match[1]] = match[2]
    return commits


def write_lock(path: Path, commits: Mapping[str, str], *, recipe: Path) -> None:
    """Write `commits` (key -> commit) as the lock file of `recipe`, sorted by key, below a comment that explains it.

    Raises:
        PreflightError: the folder cannot be written.
    """
    lines = [f"{key}: {commits[key]}" for key in sorted(commits)]
    assert all(map(_LINE.fullmatch, lines)), "commits and revisions are checked where they are read"
    try:
        delete_leftovers(path.parent, path.name)
        write_text(path, _HEADER.format(recipe=show(recipe.name)) + "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise PreflightError(
            f"{path}: cannot be written ({error.strerror}); copy the recipe to a folder of your own, or give each hub "
            "source a commit as its `revision`"
        ) from error
