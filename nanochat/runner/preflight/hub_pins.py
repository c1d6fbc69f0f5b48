"""Hub sources pinned to commits: asked for at a recipe's first run, kept in its lock file and read from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nanochat.data.hub import hub
from nanochat.data.hub.hub import HubSource
from nanochat.data.hub.lock_file import lock_key, lock_path, read_lock, write_lock
from nanochat.errors import PreflightError
from nanochat.recipe.load import LoadedRecipe


def pin_sources(loaded: LoadedRecipe, base: Path) -> str | None:
    """Write into the recipe's lock file what is not in it yet; return a line that says so, None where all is.

    A data set that is downloaded is pinned to that commit, else the hub is asked. With `run.data.refresh_lock` it is
    asked for all of them. Offline, what is not downloaded stays unpinned, for preflight to tell.

    Raises:
        PreflightError: the hub cannot be asked or has no such data set or revision (each is named), or the lock file
            cannot be read or written.
    """
    settings = loaded.recipe.run
    unpinned = _unpinned(loaded)
    wanted = {lock_key(source): source for source in unpinned.values()}
    if not wanted:
        return None
    path = lock_path(loaded.path)
    locked = read_lock(path)
    if settings.data.refresh_lock and settings.offline:
        raise PreflightError("`run.data.refresh_lock` asks the hub, and this run is offline; do without one of them")
    missing = {key: one for key, one in wanted.items() if settings.data.refresh_lock or key not in locked}
    users = {key: [name for name, one in unpinned.items() if lock_key(one) == key] for key in missing}
    found = _look_up(missing, users, base, offline=settings.offline, refresh=settings.data.refresh_lock)
    if all(locked.get(key) == commit for key, commit in found.items()):
        return None
    write_lock(path, {**locked, **found}, recipe=loaded.path)
    changed = sum(key in locked and locked[key] != commit for key, commit in found.items())
    again = f", {changed} of them to another commit than before" if changed else ""
    return f"pinned {len(found)} hub data set{'s' if len(found) > 1 else ''} in {path}{again}"


def with_pins(loaded: LoadedRecipe) -> LoadedRecipe:
    """Return the recipe with the commits of its lock file as revisions; what is not in there stays as it is.

    Raises:
        PreflightError: the lock file is not of its form.
    """
    unpinned = _unpinned(loaded)
    locked = read_lock(lock_path(loaded.path)) if unpinned else {}
    sources = dict(loaded.recipe.sources)
    for name, source in unpinned.items():
        commit = locked.get(lock_key(source))
        if commit is not None:
            sources[name] = sources[name].model_copy(update={"revision": commit})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"sources": sources}))


def _unpinned(loaded: LoadedRecipe) -> dict[str, HubSource]:
    """Return the hub sources whose revision is a branch or a tag, by name."""
    found = {}
    for name, section in loaded.recipe.sources.items():
        if section.uri is not None:
            source = HubSource.parse(section.uri, section.revision)
            if not source.is_pinned:
                found[name] = source
    return found


def _look_up(
    sources: Mapping[str, HubSource], users: Mapping[str, Sequence[str]], base: Path, *, offline: bool, refresh: bool
) -> dict[str, str]:
    """Return the commit of each key that is known or, online, asked for; `users` are the recipe's sources by name."""
    commits: dict[str, str] = {}
    problems: list[str] = []
    for key, source in sources.items():
        commit = None if refresh else hub.known_commit(source, base=base)
        if commit is None and not offline:
            try:
                commit = hub.check(source)
            except PreflightError as error:
                names = ", ".join(f"`{name}`" for name in users[key])
                problems.append(f"source {names}: {error}")
        if commit is not None:
            commits[key] = commit
            hub.record_commit(source, commit, base=base)
    if problems:
        raise PreflightError("\n".join(problems))
    return commits
