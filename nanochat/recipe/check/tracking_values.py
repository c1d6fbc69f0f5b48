"""Checks where a recipe logs to: MLflow addresses that can never work, and names that MLflow refuses or uses itself."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from urllib.parse import urlsplit

from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import Plain

EXPERIMENT_CHARS = 500
"""The longest name of an experiment that MLflow accepts."""
KEY_CHARS = 250
"""The longest name of a tag, parameter or metric that MLflow accepts."""
TAG_CHARS = 8000
"""The longest value of a tag that MLflow accepts."""
_NAME_CHARS = {"experiment": EXPERIMENT_CHARS, "register": KEY_CHARS}
BAD_KEY_CHARACTER = re.compile(r"[^\w\-. :/]")
"""A character that MLflow refuses in the name of a tag, parameter or metric."""
MLFLOW_PREFIX = "mlflow."
"""Tags with this prefix belong to MLflow: they name, nest, describe and hide its runs."""
MLFLOW_PORT, LAST_PORT = 5000, 65535
"""Where MLflow's server listens by default, and the last port that exists."""
SQLITE = "sqlite:///"
"""Starts the address of a database file. The path follows as it is: nothing in it is escaped."""
DATABASE_FILE = "mlflow.db"
DEFAULT_EXPERIMENT = "nanochat"
ADDRESS_FORMS = "write `http://HOST:PORT`, `sqlite:///FILE.db`, `postgresql://HOST/NAME` or `databricks`"
"""The usual forms of an address."""

_SERVERS = ("http", "https")
_DATABASES = ("postgresql", "mysql", "mssql")
_SQLITE_FILE = re.compile(r"sqlite:///(?!:memory:|~)(?!.*\?[^/]*=[^/]*$).*[^/]", re.DOTALL)
"""A file, neither a folder nor a database in memory, without parameters. A `~` has no meaning in an address."""
_NO_PLUGINS = {"file", "uc", "databricks-uc", "sqlite", *_SERVERS, *_DATABASES}
"""Schemes that no plugin takes over. In lower case, MLflow knows some of them itself."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+")
_HOST_AND_PORT = re.compile(r"([\w.\-]+|\[[0-9a-fA-F:.]+\]):\d+(/.*)?")
_LOCAL_PATH = re.compile(r"(file:(//)?)?(?P<path>\.{0,2}/.*|mlruns/?|[^/:]+\.db)", re.DOTALL)
"""A folder, such as those to which MLflow logged by default until version 3, or a database without `sqlite:///`."""


def check_tracking(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    """Yield the problems of the section `tracking` of a merged recipe."""
    section = data.get("tracking")
    if not isinstance(section, dict):
        return
    given = {name: section.get(name) for name in ("uri", "experiment", "register")}
    texts = {name: value for name, value in given.items() if isinstance(value, str) and value}
    for name, value in texts.items():
        limit = _NAME_CHARS.get(name)
        if not value.strip():
            yield FieldProblem(("tracking", name), "bad-name", f"`{name}` is blank", "remove it, or name one")
        elif limit is not None and len(value) > limit:
            message = f"the name has {len(value):,} characters, and MLflow accepts {limit}"
            yield FieldProblem(("tracking", name), "out-of-range", message, "shorten it")
        elif name == "uri" and (wrong := find_wrong_address(value)) is not None:
            yield FieldProblem(("tracking", "uri"), "bad-format", "MLflow cannot log to this address", wrong)
        elif name == "register" and (acceptable_key(value) != value.strip() or set(value) & set("/:")):
            message = f"`{value}` cannot be the name of a registered model"
            help_ = "use letters, digits and `_-.`, and spaces between them"
            yield FieldProblem(("tracking", "register"), "bad-name", message, help_)
    tags = section.get("tags")
    yield from _check_tags(tags if isinstance(tags, dict) else {})


def _check_tags(tags: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    for key, value in tags.items():
        if (problem := _key_problem(key)) is not None:
            yield FieldProblem(("tracking", "tags", key), "bad-name", *problem, at_key=True)
        if isinstance(value, str) and len(value) > TAG_CHARS:
            message = f"the tag `{key}` has {len(value):,} characters, and MLflow accepts {TAG_CHARS:,}"
            yield FieldProblem(("tracking", "tags", key), "out-of-range", message, "shorten it")


def _key_problem(key: str) -> tuple[str, str] | None:
    """Return why MLflow would refuse or misunderstand a tag of this name, and what to do about it, else None."""
    if key.startswith(MLFLOW_PREFIX):
        help_ = f"name it `{key.removeprefix(MLFLOW_PREFIX) or 'note'}`, or use `name` and `description` of the recipe"
        return f"`{key}` is one of MLflow's own tags", help_
    if len(key) > KEY_CHARS:
        return f"the name of the tag has {len(key)} characters, and MLflow accepts {KEY_CHARS}", "shorten it"
    if (accepted := acceptable_key(key)) != key:
        help_ = f"use letters, digits, spaces and `_-.:/` as in a relative path, for example `{accepted}`"
        return f"MLflow does not accept a tag with the name `{key}`", help_
    return None


def acceptable_key(key: str) -> str:
    """Return the name that is closest to `key` among those that MLflow accepts for tags, parameters and metrics."""
    parts = [part for part in BAD_KEY_CHARACTER.sub("_", key).split("/") if part not in ("", ".", "..")]
    return posixpath.join(*parts)[:KEY_CHARS].rstrip("/") if parts else "_"


def find_wrong_address(uri: str, *, plugins: Collection[str] | None = None) -> str | None:
    """Return why MLflow can never log to `uri` and what an address looks like, or None if it may be able to.

    `plugins` are the schemes of stores that are installed beside MLflow's own. If None, every scheme is accepted.
    """
    scheme, colon, rest = uri.partition(":")
    kind = scheme.partition("+")[0]
    if uri in ("", "databricks") or uri.startswith("databricks://"):
        return None
    if kind in _SERVERS:
        is_right = _is_server(uri)
    elif kind == "sqlite":
        is_right = _SQLITE_FILE.fullmatch(uri) is not None
    elif kind in _DATABASES:
        is_right = rest.startswith("//")
    else:
        is_scheme = bool(colon and _SCHEME.fullmatch(scheme)) and not _HOST_AND_PORT.fullmatch(uri)
        is_right = is_scheme and kind.lower() not in _NO_PLUGINS and (plugins is None or scheme.lower() in plugins)
    if is_right and uri == uri.strip():
        return None
    meant = _address_meant(uri.strip())
    return f"MLflow keeps runs on a server or in a database: {ADDRESS_FORMS if meant is None else f'write `{meant}`'}"


def _address_meant(uri: str) -> str | None:
    """Return the right address for the most frequent mistakes, None for others.

    These are a page of a server, as a browser shows it, a server without `http://`, and a folder or a file.
    """
    server = re.split("[?#]", uri)[0].rstrip("/")
    if server.startswith(("http://", "https://")) and _is_server(server):
        return server
    if _HOST_AND_PORT.fullmatch(uri):
        return f"http://{uri}"
    if (match := _LOCAL_PATH.fullmatch(uri)) is None:
        return None
    path = posixpath.normpath(match["path"])
    return SQLITE + (path if path.endswith(".db") else posixpath.join(path, DATABASE_FILE))


def _is_server(uri: str) -> bool:
    """Return whether an address names a server, and not a page of it."""
    parts = urlsplit(uri)
    try:
        return bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:  # a port that is not a number, or too large
        return False
