"""Tests of which commit is recorded as the origin of a result."""

from __future__ import annotations

import json
import subprocess

import pytest

from nanochat.runner.store.provenance import collect, git_state, installed_commit


def git(folder, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def package_file(tmp_path):
    """A package in a repository that tracks it."""
    path = tmp_path / "nanochat" / "__init__.py"
    path.parent.mkdir()
    path.write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return path


def test_git_state_is_the_commit_of_the_repository_that_tracks_the_package(tmp_path, package_file):
    assert git_state(package_file) == (git(tmp_path, "rev-parse", "HEAD"), False)
    package_file.write_text("changed = True\n")
    assert git_state(package_file) == (git(tmp_path, "rev-parse", "HEAD"), True)


@pytest.mark.parametrize("ignored", ["", "site-packages\n"])
def test_git_state_is_unknown_for_a_package_installed_inside_another_repository(tmp_path, package_file, ignored):
    """The environment lies in the repository, whether ignored or merely untracked, but holds other code."""
    (tmp_path / ".gitignore").write_text(ignored)
    installed = tmp_path / "site-packages" / "nanochat" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    assert git_state(installed) == (None, False)


def test_commit_of_a_package_installed_from_a_repository_is_what_pip_recorded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nanochat").mkdir()
    metadata = tmp_path / "nanochat_run-9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: nanochat-run\nVersion: 9\n")
    assert installed_commit(tmp_path / "nanochat") is None
    content = {"url": "https://host/it.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}
    (metadata / "direct_url.json").write_text(json.dumps(content))
    assert installed_commit(tmp_path / "nanochat") == "c0ffee"
    assert installed_commit(tmp_path / "other" / "nanochat") is None
    (metadata / "direct_url.json").write_text(json.dumps({"url": "file:///it", "dir_info": {}}))
    assert installed_commit(tmp_path / "nanochat") is None


def test_provenance_without_a_repository_names_the_package_version(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").write_text("")
    assert git_state(tmp_path / "__init__.py") == (None, False)
    monkeypatch.setattr("nanochat.runner.store.provenance._git", lambda *_: None)
    provenance = collect()
    assert provenance.git_commit is None and "nanochat" in provenance.packages
