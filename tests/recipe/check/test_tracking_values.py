"""Tests of the checks on `tracking`: addresses that MLflow can never use, and names that it refuses or uses itself."""

from __future__ import annotations

import pytest

from nanochat.recipe.check.tracking_values import acceptable_key, check_tracking, find_wrong_address


@pytest.mark.parametrize(
    "uri",
    [
        "uri",
        "sqlite:runs.db",
        "sqlite://runs.db",
        "sqlite:/data/runs.db",
        "sqlite:///runs.db?timeout=9",
        "sqlite:///runs/",
        "sqlite://",
        "sqlite:///:memory:",
        "localhost",
        "tracking.example.com/mlflow",
        "http:/x",
        "http:x:5000",
        "http://",
        "http://host:99999",
        "HTTPS://host",
        "postgresql:/host/runs",
        "uc",
    ],
)
def test_address_that_can_never_work_is_found(uri):
    wrong = find_wrong_address(uri)
    assert wrong is not None and "write `http://HOST:PORT`, `sqlite:///FILE.db`" in wrong


@pytest.mark.parametrize(
    ("uri", "right"),
    [
        ("./mlruns", "sqlite:///mlruns/mlflow.db"),
        ("mlruns/", "sqlite:///mlruns/mlflow.db"),
        ("../runs", "sqlite:///../runs/mlflow.db"),
        ("/data/mlruns", "sqlite:////data/mlruns/mlflow.db"),
        ("file:///data/mlruns", "sqlite:////data/mlruns/mlflow.db"),
        ("/data/runs.db", "sqlite:////data/runs.db"),
        ("runs.db", "sqlite:///runs.db"),
        ("localhost:5000", "http://localhost:5000"),
        ("[::1]:5000/x", "http://[::1]:5000/x"),
        (" localhost:5000 ", "http://localhost:5000"),
        ("http://host:5000/#/experiments/1?searchFilter=x", "http://host:5000"),
        ("https://host/mlflow/?o=1#x", "https://host/mlflow"),
        (" http://host ", "http://host"),
    ],
)
def test_right_address_is_named_where_the_wrong_one_shows_it(uri, right):
    assert str(find_wrong_address(uri)).endswith(f": write `{right}`")
    assert find_wrong_address(right, plugins=()) is None


@pytest.mark.parametrize("uri", ["htp://host:5000", "postgres://host/runs", "sqlite3:///runs.db", "s3://bucket/runs"])
def test_scheme_without_a_store_is_wrong_unless_a_plugin_adds_it(uri):
    """Which plugins are installed depends on the machine, so a recipe may name any scheme."""
    scheme = uri.partition(":")[0]
    assert find_wrong_address(uri, plugins=()) is not None
    assert find_wrong_address(uri) is None and find_wrong_address(uri, plugins=(scheme,)) is None


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///runs.db", "sqlite:////data/100%20/what?/a=b/runs.db", "http://localhost:5000", "https://host/path/",
        "http://[::1]:5000", "http://[::1]", "postgresql+psycopg2://host/runs?sslmode=require", "databricks",
        "databricks://profile",
    ],
)  # fmt: skip
def test_address_that_may_work_is_accepted(uri):
    assert find_wrong_address(uri, plugins=()) is None


@pytest.mark.parametrize(
    ("key", "accepted"),
    [
        ("a,b", "a_b"),
        ("a//b/", "a/b"),
        ("../up", "up"),
        ("", "_"),
        ("ä: b/c.d-e_f", "ä: b/c.d-e_f"),
        ("k" * 300, "k" * 250),
    ],
)
def test_acceptable_key_is_one_that_mlflow_accepts(key, accepted):
    """MLflow's own check is the oracle."""
    from mlflow.utils.validation import _validate_tag

    assert acceptable_key(key) == accepted
    assert _validate_tag(accepted, "").key == accepted


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("uri", " ", "`uri` is blank"),
        ("experiment", "  ", "`experiment` is blank"),
        ("register", " ", "`register` is blank"),
        ("register", "speller ", "`speller ` cannot be the name of a registered model"),
        ("register", "a/b", "`a/b` cannot be the name of a registered model"),
        ("register", "a" * 251, "the name has 251 characters, and MLflow accepts 250"),
    ],
)
def test_blank_and_impossible_names_are_refused(field, value, message):
    """A long name is not repeated in the message."""
    (problem,) = check_tracking({"tracking": {field: value}})
    assert (problem.path, problem.message) == (("tracking", field), message)
    assert list(check_tracking({"tracking": {field: "sqlite:///a.db" if field == "uri" else "a b.c-d_e"}})) == []
