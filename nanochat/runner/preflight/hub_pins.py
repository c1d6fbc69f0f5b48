"""Pins hub data sets to commits, so that every later run of a recipe reads the same data.

The first run asks the hub for the commits and writes them into the recipe's lock file. Later runs read them from there.
The lock file is kept together with the recipe. Each line pins a data set and the revision that the recipe names:

    hf://datasets/OWNER/NAME@REVISION: COMMIT
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nanochat.data.hub import hub
from nanochat.data.hub.hub_source import HubSource, is_on_hub
from nanochat.data.places.file_names import show
from nanochat.errors import PreflightError
from nanochat.plurals import several
from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.shipped import is_installed
from nanochat.storage.files import delete_leftovers, write_text

SUFFIX = ".lock"

_LINE = re.compile(r"(hf://datasets/[^/\s]+/[^/\s]+@\S+): ([0-9a-f]{40})")
_HEADER = """\
# The commits of the hub data sets that {recipe} reads, written at its first run; keep this file with the recipe.
# Later runs read the same data. To pin the current commits instead: --set run.data.refresh_lock=true
"""


def pin_sources(loaded: LoadedRecipe, base: Path) -> str | None:
    """Add missing commits to the recipe's lock file. Return a line that says so, or None if nothing was missing.

    A downloaded data set is pinned to the commit that was downloaded; for others the hub is asked. With
    `run.data.refresh_lock` the hub is asked for all of them. Offline, a data set that is not downloaded stays unpinned,
    and preflight reports it as missing. The message of a PreflightError lists all data sets that the hub does not have.
    """
    unpinned, offline, refresh = _unpinned(loaded), loaded.recipe.run.offline, loaded.recipe.run.data.refresh_lock
    if not unpinned:
        return None
    path = _pins_path(loaded, base)
    locked = read_lock(path)
    if refresh and offline:
        raise PreflightError(
            "`run.data.refresh_lock` asks the hub, but this run is offline; remove one of the two settings"
        )
    commits: dict[str, str] = {}
    problems: list[str] = []
    notes: list[str] = []
    for key, source in {_lock_key(source): source for source in unpinned.values()}.items():
        if key in locked and not refresh:
            continue
        try:
            commit = _look_up_commit(source, base, notes, offline=offline, refresh=refresh)
        except PreflightError as error:
            names = ", ".join(f"`{name}`" for name, other in unpinned.items() if _lock_key(other) == key)
            problems.append(f"source {names}: {error}")
        else:
            commits |= {key: commit} if commit is not None else {}
    if problems:
        raise PreflightError("\n".join(problems))
    if all(locked.get(key) == commit for key, commit in commits.items()):
        return None
    write_lock(path, {**locked, **commits}, recipe=loaded.path)
    changed = sum(key in locked and locked[key] != commit for key, commit in commits.items())
    suffix = f", {changed} of them to a different commit than before" if changed else ""
    return f"pinned {several(len(commits), 'hub data set')} in {path}{suffix}" + "".join(f"; {note}" for note in notes)


def with_pins(loaded: LoadedRecipe, base: Path) -> LoadedRecipe:
    """Return the recipe with branches and tags replaced by the commits in its lock file, if they are listed there."""
    unpinned = _unpinned(loaded)
    locked = read_lock(_pins_path(loaded, base)) if unpinned else {}
    sources = dict(loaded.recipe.sources)
    for name, source in unpinned.items():
        if commit := locked.get(_lock_key(source)):
            sources[name] = sources[name].model_copy(update={"revision": commit})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"sources": sources}))


def _pins_path(loaded: LoadedRecipe, base: Path) -> Path:
    """Return the recipe's lock file, such as `speedrun.lock` beside `speedrun.yaml`.

    The lock file of a recipe inside the installed package is in the base folder.
    """
    return (base / "pins" / loaded.path.name if is_installed(loaded.path) else loaded.path).with_suffix(SUFFIX)


def _unpinned(loaded: LoadedRecipe) -> dict[str, HubSource]:
    """Return the hub sources whose revision is a branch or a tag, by name."""
    unpinned = {}
    for name, section in loaded.recipe.sources.items():
        if section.uri is not None and is_on_hub(section.uri):
            source = HubSource.parse(section.uri, section.revision)
            if not source.is_pinned:
                unpinned[name] = source
    return unpinned


def _look_up_commit(source: HubSource, base: Path, notes: list[str], *, offline: bool, refresh: bool) -> str | None:
    """Return the commit to pin, and store it for the next look-up; None if it is not known offline.

    It is the commit that is downloaded (unless `refresh`), else the one that the hub names or, offline, the one in the
    cache of other tools. Sentences for the user are added to `notes`.
    """
    commit = None if refresh else hub.known_commit(source, base=base)
    if commit is None:
        try:
            wanted = hub.check(source, offline=offline)
        except PreflightError:
            if not offline:
                raise
        else:
            commit = wanted.commit
            notes.extend(f"{source.describe()}: {note}" for note in wanted.notes)
    if commit is not None:
        hub.record_commit(source, commit, base=base)
    return commit


def _lock_key(source: HubSource) -> str:
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
