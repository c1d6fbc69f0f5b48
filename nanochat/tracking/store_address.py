"""The address of an MLflow store: which one is used, and how it is shown without secrets. Never imports MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from nanochat import runtime
from nanochat.recipe.check.tracking_values import DATABASE_FILE, DEFAULT_EXPERIMENT, SQLITE

SERVER_PORTS = {"http": 80, "https": 443}
_SECRET = re.compile("pass|pwd|token|secret|key", re.IGNORECASE)
"""URI parameters with such a name are secret."""


def resolve_uri(recipe_uri: str | None, folder: Path) -> str:
    """Return the tracking URI: the recipe's, else MLFLOW_TRACKING_URI, else a SQLite file in `folder`.

    The result has no credentials, since it is written to files. `open_store` reads them from the environment.
    """
    given = recipe_uri or runtime.environment("MLFLOW_TRACKING_URI")
    if not given:
        return sqlite_uri(folder / DATABASE_FILE)
    if given.startswith(SQLITE) and (path := given.removeprefix(SQLITE)) not in ("", ":memory:"):
        return sqlite_uri(folder / path)
    return show_uri(given)


def resolve_experiment(recipe_experiment: str | None) -> str:
    """Return the name of the experiment: the recipe's, else MLFLOW_EXPERIMENT_NAME, else `nanochat`."""
    return recipe_experiment or runtime.environment("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def sqlite_uri(database: Path) -> str:
    """Return the address of a database file."""
    return f"{SQLITE}{database.resolve()}"


def database_path(uri: str) -> Path | None:
    """Return the file of a SQLite store, or None for a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def show_uri(uri: str) -> str:
    """Return the URI without user name, password, and parameters that look like secrets."""
    if uri.startswith(SQLITE):
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:  # half of an IPv6 address in brackets
        return uri.rpartition("@")[2]
    if "://" not in uri:  # not an address, but it may begin with a user name and a password
        return uri.rpartition("@")[2]
    query = parse_qsl(parts.query, keep_blank_values=True)
    harmless = [(name, value) for name, value in query if not _SECRET.search(name)]
    if "@" not in parts.netloc and len(harmless) == len(query):
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(harmless)))


def with_credentials(uri: str) -> str:
    """Return the URI to connect to: the one in the environment, if it only differs by its credentials.

    The user and password of an HTTP server are put into environment variables that MLflow reads, because MLflow prints
    the URI.
    """
    given = runtime.environment("MLFLOW_TRACKING_URI")
    if not given or show_uri(given) != uri:
        return uri
    parts = urlsplit(given)
    if parts.scheme not in SERVER_PORTS:
        return given
    for name, value in (("MLFLOW_TRACKING_USERNAME", parts.username), ("MLFLOW_TRACKING_PASSWORD", parts.password)):
        if value is not None and runtime.environment(name) is None:
            runtime.set_environment(name, unquote(value))
    return uri
