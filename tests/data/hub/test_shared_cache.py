"""Tests that data sets which other tools have downloaded are used. Their library makes the cache."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from huggingface_hub import _tree_cache

from nanochat.data.documents import single_pass
from nanochat.data.sources.source_contents import check_source, list_files, resolve_files
from nanochat.data.sources.source_downloads import fetch, resolve_revision
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError

SPEC = SourceSpec(name="texts", uri="hf://datasets/some/texts", validation_hash_frac=1e-9)
NAMES = ("data/train-0.jsonl", "data/train-1.jsonl")
SIX_LINES = sorted(f"text {i} of {name}" for name in NAMES for i in range(3))


@pytest.fixture
def texts(fake_hub):
    for name in NAMES:
        lines = [json.dumps({"text": f"text {i} of {name}"}) for i in range(3)]
        fake_hub.files[name] = "\n".join(lines).encode()
    fake_hub.files["README.md"] = b"# Texts"
    return fake_hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "shared"))
    return tmp_path / "shared"


def download_with_their_library(hub, cache, *names, revision="main"):
    """Download the named files, or all of them."""
    from huggingface_hub import hf_hub_download, snapshot_download

    place = {"repo_type": "dataset", "endpoint": hub.url, "cache_dir": str(cache), "token": False}
    for name in names:
        hf_hub_download("some/texts", name, revision=revision, **place)
    if not names:
        snapshot_download("some/texts", revision=revision, **place)


def texts_of(spec, base):
    return sorted([*single_pass(spec, "train", base=base), *single_pass(spec, "validation", base=base)])


def blob_of(cache, name):
    (path,) = cache.rglob(Path(name).name)
    return path.resolve()


def content_requests(hub):
    return [path for path, _ in hub.requests if path.startswith("/cdn/")]


def test_offline_data_set_of_the_shared_cache_is_used_without_a_request_or_a_copy(texts, cache, base):
    download_with_their_library(texts, cache)
    before = len(texts.requests)
    check_source(SPEC, base, True)
    fetch(SPEC, base=base, offline=True)
    assert texts_of(SPEC, base) == SIX_LINES
    assert resolve_revision(SPEC, base=base, offline=True) == texts.commit
    assert len(texts.requests) == before
    assert [path.samefile(blob_of(cache, path.name)) for path in resolve_files(SPEC, base=base)] == [True, True]


def test_hf_hub_offline_never_opens_a_connection(texts, cache, base, monkeypatch):
    """It acts like `--offline` even if the recipe does not say so, and a missing data set is named."""
    download_with_their_library(texts, cache)
    before = len(texts.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_source(SPEC, base, False)
    fetch(SPEC, base=base, offline=False)
    assert texts_of(SPEC, base) == SIX_LINES
    missing = SourceSpec(name="other", uri="hf://datasets/some/others")
    for act in (lambda: check_source(missing, base, False), lambda: fetch(missing, base=base, offline=False)):
        with pytest.raises(PreflightError, match=r"hf://datasets/some/others .* is not downloaded"):
            act()
    assert len(texts.requests) == before


def test_offline_cache_that_lacks_a_file_of_its_list_is_refused(texts, cache, base):
    download_with_their_library(texts, cache)
    next(cache.rglob("train-1.jsonl")).unlink()
    blob = cache / "datasets--some--texts/blobs"
    for path in blob.iterdir():
        if path.read_bytes() == texts.files[NAMES[1]]:
            path.unlink()
    for act in (lambda: check_source(SPEC, base, True), lambda: fetch(SPEC, base=base, offline=True)):
        with pytest.raises(PreflightError, match=r"lacks 1 of 2 files, such as data/train-1\.jsonl"):
            act()


def test_offline_cache_without_a_list_gives_its_files_with_a_note(texts, cache, base):
    download_with_their_library(texts, cache, NAMES[0])
    fetch(SPEC, base=base, offline=True)
    choice = list_files(SPEC, base=base)
    assert [path.name for path in choice.paths] == ["train-0.jsonl"]
    assert choice.notes == ("these files lie in the Hugging Face cache, which may not have all files of the data set",)


def test_damaged_file_of_the_shared_cache_is_not_used(texts, cache, base):
    """The network gives it, and the cache stays as it is. Offline it is refused."""
    download_with_their_library(texts, cache)
    blob = blob_of(cache, NAMES[1])
    damaged = b"X" + blob.read_bytes()[1:]
    blob.write_bytes(damaged)
    with pytest.raises(PreflightError, match=r"data/train-1\.jsonl: no undamaged copy on this machine"):
        fetch(SPEC, base=base, offline=True)
    texts.requests.clear()
    fetch(SPEC, base=base, offline=False)
    assert content_requests(texts) == [f"/cdn/{NAMES[1]}"]
    assert texts_of(SPEC, base) == SIX_LINES and blob.read_bytes() == damaged


def test_only_files_that_changed_since_the_cached_commit_are_downloaded(texts, cache, base):
    download_with_their_library(texts, cache)
    texts.commit = "d" * 40
    texts.files["data/train-2.jsonl"] = b'{"text": "one more"}'
    texts.requests.clear()
    fetch(SPEC, base=base, offline=False)
    assert content_requests(texts) == ["/cdn/data/train-2.jsonl"]
    assert texts_of(SPEC, base) == sorted([*SIX_LINES, "one more"])


def test_shared_cache_on_another_disk_is_linked_to(texts, cache, base, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    download_with_their_library(texts, cache)
    fetch(SPEC, base=base, offline=True)
    assert all(path.is_symlink() for path in resolve_files(SPEC, base=base))
    assert texts_of(SPEC, base) == SIX_LINES


def test_shared_cache_whose_list_has_a_path_as_digest_is_refused(texts, cache, base):
    download_with_their_library(texts, cache)
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    (tree,) = cache.rglob("trees/*.json")
    tree.write_text(tree.read_text().replace(blob_of(cache, NAMES[0]).name, "../../../x"))
    for act in (lambda: check_source(SPEC, base, True), lambda: fetch(SPEC, base=base, offline=True)):
        with pytest.raises(PreflightError, match=r"the cache .* is refused: .*with the git-sha1 `'\.\./\.\./\.\./x'`"):
            act()


@pytest.mark.parametrize("commit", ["../../x", "c0ffee", ""])
def test_shared_cache_whose_branch_names_no_commit_counts_as_empty(texts, cache, base, commit):
    download_with_their_library(texts, cache)
    (cache / "datasets--some--texts/refs/main").write_text(commit)
    with pytest.raises(PreflightError, match="is not downloaded"):
        check_source(SPEC, base, True)


def test_link_that_leaves_the_shared_cache_is_not_followed(texts, cache, base, tmp_path):
    """The content is right, but the file is not the cache's."""
    download_with_their_library(texts, cache)
    blob = blob_of(cache, NAMES[1])
    blob.rename(tmp_path / blob.name)
    path = cache / f"datasets--some--texts/snapshots/{texts.commit}/{NAMES[1]}"
    path.unlink()
    path.symlink_to(tmp_path / blob.name)
    with pytest.raises(PreflightError, match=r"lacks 1 of 2 files, such as data/train-1\.jsonl"):
        fetch(SPEC, base=base, offline=True)
