"""The lock file beside a recipe: which commit each hub data set is pinned to, a line each, to be kept with the recipe.

    hf://datasets/OWNER/NAME@REVISION: COMMIT

The key is the data set and the revision that the recipe names, so that sources that share a data set share its commit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nanochat.data.hub.hub import HubSource
from nanochat.errors import PreflightError
from nanochat.storage.files import write_text

SUFFIX = ".lock"

_LINE = re.compile(r"(hf://datasets/[^/\s]+/[^/\s]+@\S+): ([0-9a-f]{40})")
_HEADER = """\
# The commits of the hub data sets that {recipe} reads, written at its first run; keep this file with the recipe.
# Later runs read the same data. To take what the revisions name now: --set run.data.refresh_lock=true
"""


def lock_path(recipe: Path) -> Path:
    """Return the lock file's path: `recipes/speedrun.lock` for `recipes/speedrun.yaml`."""
    return recipe.with_suffix(SUFFIX)


def lock_key(source: HubSource) -> str:
    """Return the name of a source in lock files."""
    return f"hf://datasets/{source.repository}@{source.revision}"


def read_lock(path: Path) -> dict[str, str]:
    """Return the commit of each key, none where there is no lock file.

    Raises:
        PreflightError: a line is not of the form; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(f"{path}: cannot be read ({error}); delete it to pin anew") from error
    commits: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            expected = "`hf://datasets/OWNER/NAME@REVISION: COMMIT` with a commit of 40 hex digits"
            raise PreflightError(f"{path}:{number}: expected {expected}; repair it, or delete the line to pin anew")
        commits[found[1]] = found[2]
    return commits


def write_lock(path: Path, commits: Mapping[str, str], *, recipe: Path) -> None:
    """Write the lock file, at once or not at all.

    Raises:
        PreflightError: the folder cannot be written.
    """
    lines = "".join(f"{key}: {commits[key]}\n" for key in sorted(commits))
    try:
        write_text(path, _HEADER.format(recipe=recipe.name) + lines)
    except OSError as error:
        raise PreflightError(
            f"{path}: cannot be written ({error.strerror}); copy the recipe to a folder of your own, or give each hub "
            "source a commit as its `revision`"
        ) from error
