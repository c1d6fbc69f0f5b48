"""Registers a model: a version of a registered model, and the alias `best`.

The alias moves only if the recipe has expectations and all of them hold. It stays if the version that has it is better
by every result that both recipes name: that a model is good enough is no reason to replace a better one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nanochat.tracking.database import set_version_source
from nanochat.tracking.link import ModelLink
from nanochat.tracking.mlflow_store import Store
from nanochat.tracking.run_view import KEY_TAG, Expectation, Registration
from nanochat.tracking.store_address import SERVER_PORTS, database_path
from nanochat.tracking.writer import acceptable_tags

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

BEST = "best"
"""The alias."""
_RESULT_TAG = "expect."
"""Starts the tags with the results that a version was expected to reach."""
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_MISSING = "RESOURCE_DOES_NOT_EXIST"


def register(store: Store, registration: Registration, link: ModelLink, *, run_id: str) -> list[str]:
    """Create the version, unless it exists, and move the alias to it if it should have it. Return lines for the user.

    `run_id` is the MLflow run that trained the model.
    """
    client, name, notices = store.client, registration.name, []
    _create_registered_model(client, name)
    version = _find_version(client, name, link)
    if version is None:
        version = _create_version(store, registration, link, run_id)
        notices.append(f"registered version {version.version} of the model `{name}`")
    else:
        for key, value in _tags(registration).items():
            if version.tags.get(key) != value:
                client.set_model_version_tag(name, version.version, key, value)
    best = _find_best(client, name)
    if best is not None and best.version == version.version:
        return notices
    reason = _why_not_best(registration, best)
    if reason is None:
        client.set_registered_model_alias(name, BEST, version.version)
        notices.append(f"version {version.version} of the model `{name}` is now `{BEST}`")
    elif notices:
        notices.append(f"`{BEST}` was not moved to version {version.version} of the model `{name}`: {reason}")
    return notices


def _create_version(store: Store, registration: Registration, link: ModelLink, run_id: str) -> ModelVersion:
    """Create the version, with the logged model as its source.

    Unless the store is a server, MLflow would look for the logged model in the store of its global settings. In a
    database, the version is therefore created with the folder of the files, and its source is set afterwards.
    """
    source, path = f"models:/{link.model_id}", database_path(store.uri)
    has_server = urlsplit(store.uri).scheme in SERVER_PORTS
    version = store.client.create_model_version(
        registration.name,
        source if has_server else store.client.get_logged_model(link.model_id).artifact_location,
        run_id=run_id,
        tags=_tags(registration) | {KEY_TAG: link.key},
        description=registration.description,
        model_id=link.model_id,
    )
    if path is not None:
        set_version_source(path, registration.name, int(version.version), source)
    return version


def _tags(registration: Registration) -> dict[str, str]:
    results = {f"{_RESULT_TAG}{x.metric}": repr(x.value) for x in registration.expectations if x.value is not None}
    return acceptable_tags(registration.tags | results)


def _create_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != _MISSING:
            raise
        try:
            client.create_registered_model(name)
        except MlflowException as conflict:  # another run was faster
            if conflict.error_code != _EXISTS:
                raise


def _find_version(client: MlflowClient, name: str, link: ModelLink) -> ModelVersion | None:
    quoted = name.replace("'", "\\'")
    found = client.search_model_versions(f"name = '{quoted}' and tags.{KEY_TAG} = '{link.key}'", max_results=1)
    return found[0] if found else None


def _find_best(client: MlflowClient, name: str) -> ModelVersion | None:
    """Return the version that has the alias, or None if none has."""
    best = client.get_registered_model(name).aliases.get(BEST)
    return None if best is None else client.get_model_version(name, best)


def _why_not_best(registration: Registration, best: ModelVersion | None) -> str | None:
    """Return why the alias does not move to a version, or None if it does. `best` is the version that has it."""
    expectations = registration.expectations
    if not expectations:
        return "its recipe has no `expect`"
    unmet = [x for x in expectations if not x.is_met]
    if unmet:
        return f"{unmet[0].metric} {unmet[0].condition} does not hold"
    if best is None:
        return None
    shared = [x for x in expectations if f"{_RESULT_TAG}{x.metric}" in best.tags]
    if shared and all(_is_better(float(best.tags[f"{_RESULT_TAG}{x.metric}"]), x) for x in shared):
        results = ", ".join(f"{x.metric} {float(best.tags[f'{_RESULT_TAG}{x.metric}']):.4f}" for x in shared)
        return f"version {best.version} is better ({results})"
    return None


def _is_better(value: float, expectation: Expectation) -> bool:
    """Return whether a result is strictly better than that of an expectation, in the direction that it asks for."""
    assert expectation.value is not None, "it is met"
    if expectation.condition.strip().startswith("<"):
        return value < expectation.value
    return expectation.condition.strip().startswith(">") and value > expectation.value
