"""Tests of who may read a data set of the hub, and of long lists of files."""

from __future__ import annotations

import pytest

from nanochat.data.hub import hub
from nanochat.data.hub.access import explain_refusal
from nanochat.data.hub.hub_source import HubSource
from nanochat.data.sources.source_contents import check_source, resolve_files
from nanochat.data.sources.source_downloads import fetch
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError

SPEC = SourceSpec(name="texts", uri="hf://datasets/some/texts")


@pytest.fixture
def texts(fake_hub):
    fake_hub.files["train.jsonl"] = b'{"text": "a line"}\n'
    return fake_hub


@pytest.fixture
def login_file(tmp_path, monkeypatch):
    """The file that `hf auth login` writes, with a token in it."""
    from huggingface_hub import constants

    path = tmp_path / "home" / "token"
    path.parent.mkdir()
    path.write_text("hf_file\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(path))
    return path


def tokens_sent(hub):
    """The headers of the requests to the hub itself, not to the host that has the files."""
    return {header for (path, _), header in zip(hub.requests, hub.authorizations, strict=True) if "/cdn/" not in path}


def problem_of(act):
    with pytest.raises(PreflightError) as caught:
        act()
    return str(caught.value)


def test_every_request_carries_the_token_of_the_login_file(texts, base, login_file):
    texts.token, texts.gated = "hf_file", True
    fetch(SPEC, base=base, offline=False)
    assert [path.name for path in resolve_files(SPEC, base=base)] == ["train.jsonl"]
    assert tokens_sent(texts) == {"Bearer hf_file"}


def test_token_of_the_environment_precedes_that_of_the_login_file(texts, base, login_file, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    fetch(SPEC, base=base, offline=False)
    assert tokens_sent(texts) == {"Bearer hf_environment"}


def test_login_file_that_cannot_be_read_is_named(texts, base, login_file):
    login_file.write_bytes(b"\xff\xfe")
    assert "the token of the hub cannot be read" in problem_of(lambda: check_source(SPEC, base, False))
    assert texts.requests == []


@pytest.mark.parametrize(
    ("token", "status", "remedy"),
    [
        (None, 401, "then log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_other", 403, "then wait until its authors have granted access"),
    ],
)
def test_gated_data_set_asks_to_accept_its_terms(texts, base, monkeypatch, token, status, remedy):
    """The check before a run finds it, because it asks for a file."""
    texts.token, texts.gated = "hf_granted", True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    expected = f"the data set is gated ({status}): accept its terms at {texts.url}/datasets/some/texts, {remedy}"
    assert expected in problem_of(lambda: check_source(SPEC, base, False))
    assert expected in problem_of(lambda: fetch(SPEC, base=base, offline=False))


@pytest.mark.parametrize(
    ("token", "status", "remedy"),
    [
        (None, 401, "or it is private and needs a login"),
        ("hf_other", 404, "or it is private and the account of your token cannot see it"),
    ],
)
def test_missing_data_set_asks_for_its_name_or_a_login(fake_hub, base, monkeypatch, token, status, remedy):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    problem = problem_of(lambda: check_source(SourceSpec(name="a", uri="hf://datasets/some/nothing"), base, False))
    assert f"no such data set at {fake_hub.url}/datasets/some/nothing ({status}); check the name, {remedy}" in problem
    assert "gated" not in problem


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "does not accept the token"),
        (403, {}, "the data set is gated (403)"),
        (404, {"X-Error-Code": "EntryNotFound"}, "the data set has no such file (404)"),
        (404, {}, "no such data set at https://hub/datasets/a/b (404)"),
    ],
)
def test_refusal_is_explained_by_status_and_headers(status, headers, expected):
    assert expected in explain_refusal(status, headers, page="https://hub/datasets/a/b", token="hf_x")


def test_failure_of_the_hub_is_no_refusal():
    assert explain_refusal(503, {}, page="https://hub/datasets/a/b", token=None) is None


def test_page_of_the_list_of_files_is_asked_for_again_if_the_hub_is_busy(texts):
    """The first request decides whether there is a hub at all, so it is not repeated."""
    path = f"/api/datasets/some/texts/tree/{texts.commit}"
    texts.statuses[path] = [503, 429]
    assert [file.path for file in hub.check(HubSource.parse(SPEC.uri, None)).files] == ["train.jsonl"]
    texts.statuses["/api/datasets/some/texts/revision/main"] = [503]
    with pytest.raises(PreflightError, match=r"hf://datasets/some/texts: the server answers 503; try again later"):
        hub.check(HubSource.parse(SPEC.uri, None))


def test_access_lost_during_a_download_stops_it_without_more_attempts(texts, base, monkeypatch):
    texts.token, texts.gated = "hf_granted", True
    monkeypatch.setattr("nanochat.data.hub.listing._check_access", lambda *_: None)
    assert "train.jsonl: cannot be downloaded (the data set is gated (401)" in problem_of(
        lambda: fetch(SPEC, base=base, offline=False)
    )
    assert sum("/resolve/" in path for path, _ in texts.requests) == 1


def test_list_of_3000_files_is_read_page_by_page(fake_hub):
    for number in range(3000):
        fake_hub.files[f"part-{number // 1000}/train-{number:05}.jsonl"] = b'{"text": "a line"}\n'
    source = HubSource.parse("hf://datasets/some/texts/part-2/*-02999.jsonl", None)
    assert [file.path for file in hub.check(source).files] == ["part-2/train-02999.jsonl"]
    pages = [path for path, _ in fake_hub.requests if "/tree/" in path]
    assert len(pages) == 4  # 3,000 files and 3 folders, 1,000 a page
