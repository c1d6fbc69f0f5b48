"""Checks where a recipe logs to: MLflow addresses that can never work, and tags that MLflow refuses or uses itself."""

from __future__ import annotations

import difflib
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

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
"""What MLflow refuses in the name of a tag, parameter or metric."""
MLFLOW_PREFIX = "mlflow."
"""Tags with this prefix belong to MLflow: they name, nest, describe and hide its runs."""
MLFLOW_PORT, LAST_PORT = 5000, 65535
"""Where MLflow's server listens by default, and the last port that exists."""
DEFAULT_ADDRESS = "sqlite:///mlflow.db"

_SQLITE = "sqlite:///"
_SERVERS = ("http", "https")
_DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
_MODEL_CATALOGS = ("databricks-uc", "uc")
_SCHEMES = (*_SERVERS, *_DATABASES, "databricks")
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]+):(?P<rest>.*)", re.DOTALL)
_HOST_AND_PORT = re.compile(r"([\w.\-]+|\[[0-9a-fA-F:.]+\]):\d+(/.*)?")
_HOST = re.compile(r"(localhost|(\d+\.){3}\d+|[\w\-]+(\.[\w\-]+)*\.[A-Za-z]{2,})(/.*)?")
_DATABASE_FILE = re.compile(r"\.(db|sqlite3?)$", re.IGNORECASE)
_PARAMETERS = re.compile(r"\?[^/]*=[^/]*$")


class WrongAddress(NamedTuple):
    """Why MLflow can never log to an address, and the address to use instead."""

    reason: str
    instead: str


def check_tracking(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    """Yield what is wrong with the section `tracking` of a merged recipe."""
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
            yield FieldProblem(("tracking", "uri"), "bad-format", wrong.reason, f"write `uri: {wrong.instead}`")
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
    """Return why MLflow would refuse or misunderstand a tag of this name, and what to do about it."""
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


def find_wrong_address(uri: str, *, plugins: Collection[str] | None = None) -> WrongAddress | None:
    """Return why MLflow can never log to `uri`, or None if it may be able to.

    `plugins` are the schemes of stores that are installed beside MLflow's own. If None, every scheme is accepted.
    """
    text = uri.strip()
    match = _SCHEME.fullmatch(text)
    if text in ("databricks", "") or uri.startswith("databricks://"):
        return None
    if match is None and text in _MODEL_CATALOGS:
        wrong = _check_scheme(text, "", plugins)
    elif match is None or _HOST_AND_PORT.fullmatch(text):
        wrong = _repair_without_scheme(text)
    else:
        wrong = _check_scheme(match["scheme"], match["rest"], plugins)
    if wrong is None and text != uri:
        return WrongAddress("the address has spaces around it", text)
    return wrong


def _repair_without_scheme(text: str) -> WrongAddress:
    if _HOST_AND_PORT.fullmatch(text) or (_HOST.fullmatch(text) and not _DATABASE_FILE.search(text)):
        port = f":{MLFLOW_PORT}" if text in ("localhost", "127.0.0.1") else ""
        return WrongAddress("the address of a server begins with `http://` or `https://`", f"http://{text}{port}")
    return _repair_path(text)


def _repair_path(path: str) -> WrongAddress:
    if _DATABASE_FILE.search(path):
        return WrongAddress("the address of a database file begins with `sqlite:///`", _sqlite_address(path))
    reason = "MLflow keeps runs on a server or in a database, not in a folder of files"
    return WrongAddress(reason, _sqlite_address(posixpath.join(path, "mlflow.db")))


def _sqlite_address(path: str) -> str:
    return _SQLITE + posixpath.normpath(os.path.expanduser(path))  # noqa: PTH111 -- a Path would drop a leading `//`


def _check_scheme(scheme: str, rest: str, plugins: Collection[str] | None) -> WrongAddress | None:
    name, plus, driver = scheme.lower().partition("+")
    if name == "file":
        return _repair_path(re.sub("^//(?=/)", "", rest))
    if name in _MODEL_CATALOGS:
        return WrongAddress("a Unity Catalog holds models, not runs", "databricks")
    if name == "sqlite":
        return _check_sqlite(scheme, rest)
    if name in _SERVERS:
        return _check_server(scheme, rest)
    if name in _DATABASES:
        is_right = rest.startswith("//") and scheme == scheme.lower()
        instead = f"{name}{plus}{driver}://{rest.lstrip('/')}"
        return None if is_right else WrongAddress(f"the address begins with `{name}{plus}{driver}://`", instead)
    if plugins is None or name in plugins:
        return None
    close = difflib.get_close_matches(name, _SCHEMES, n=1)
    instead = f"{close[0]}:{rest}" if close else DEFAULT_ADDRESS
    deeper = find_wrong_address(instead)
    reason = f"MLflow has no store for `{scheme}:`, only for {', '.join(_SCHEMES)}"
    return WrongAddress(reason, instead if deeper is None else deeper.instead)


def _check_sqlite(scheme: str, rest: str) -> WrongAddress | None:
    path = rest.lstrip("/")
    slashes = len(rest) - len(path)
    if path in ("", ":memory:"):
        return WrongAddress("a database in memory is lost when the run ends", DEFAULT_ADDRESS)
    if slashes == 1 or slashes > len("///"):
        path = f"/{path}"
    if _PARAMETERS.search(path):
        return WrongAddress("the path of a database file takes no parameters", _SQLITE + _PARAMETERS.sub("", path))
    if path.endswith("/"):
        return WrongAddress("the address names a folder", f"{_SQLITE}{path}mlflow.db")
    if scheme != "sqlite" or slashes < len("///"):
        return WrongAddress("the address of a database file is `sqlite:///` and its path", _SQLITE + path)
    return WrongAddress("`~` has no meaning in an address", _sqlite_address(path)) if path.startswith("~") else None


def _check_server(scheme: str, rest: str) -> WrongAddress | None:
    start, page = f"{scheme.lower()}://", re.search("[?#].*", rest)
    host, slash, path = rest[: page.start() if page else None].lstrip("/\\").partition("/")
    name, colon, port = host.rpartition(":") if re.search(r":[^\]]*$", host) else (host, "", "")
    if not name:
        return WrongAddress("the address has no host", f"{start}localhost:{port or MLFLOW_PORT}")
    if colon and not (port.isdecimal() and 0 < int(port) <= LAST_PORT):
        return WrongAddress(f"`{port}` is not a port: a number from 1 to {LAST_PORT}", f"{start}{name}:{MLFLOW_PORT}")
    instead = f"{start}{host}{slash}{path}"
    if page:
        return WrongAddress("this is the address of a page, not of the server", instead.rstrip("/"))
    is_right = rest.startswith("//") and not rest.startswith("///") and scheme == scheme.lower()
    return None if is_right else WrongAddress(f"the address of a server begins with `{start}`", instead)
