"""Tests that the first run of a recipe pins its hub data in a lock file, and that later runs read it from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import PreflightError
from nanochat.runner.preflight.hub_pins import pin_sources
from nanochat.runner.store.run_catalog import list_runs

NEWER = "d" * 40
OLDER = "c0ffee" + "0" * 34
KEY = "hf://datasets/some/texts@main"


@pytest.fixture
def hub(bench, fake_hub):
    """A hub that holds the text and chats which the bench's recipe reads."""
    lines = "".join(json.dumps({"text": f"hello world {i}"}) + "\n" for i in range(50))
    fake_hub.files["texts/train.jsonl"] = lines.encode()
    fake_hub.files["chats/train.jsonl"] = b'{"prompt": "hello", "completion": "world"}\n'
    text = bench.recipe.read_text()
    text = text.replace("{path: text.txt, ", "{uri: 'hf://datasets/some/texts/texts', ")
    text = text.replace("{path: chats.jsonl}", "{uri: 'hf://datasets/some/texts/chats'}")
    bench.recipe.write_text(text)
    return fake_hub


def lock_of(bench):
    path = bench.recipe.with_suffix(".lock")
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_pins_keep_the_data_of_the_first_run(bench, hub):
    """Later runs read the pinned commit, even if the branch has moved and the download is gone."""
    bench.run(last="tokenizer")
    assert "pinned 1 hub data set in" in bench.display.text
    assert lock_of(bench) == [f"{KEY}: {OLDER}"]
    assert bench.calls() == ["tokenizer"]
    hub.commit = NEWER
    before = len(hub.requests)
    bench.run(last="tokenizer")
    assert "pinned" not in bench.display.text and bench.calls() == []
    assert len(hub.requests) == before
    assert f"revision: {OLDER}" in bench.run(last="tokenizer").folder.resolved.read_text()


def test_pins_of_an_installed_recipe_are_in_the_base_folder(bench, hub, monkeypatch):
    """Nothing is written into the installed package, whose recipes another user may run too."""
    monkeypatch.setattr("nanochat.recipe.shipped._PACKAGE", bench.recipe.parent)
    before = sorted(bench.recipe.parent.iterdir())
    assert pin_sources(bench.load(), bench.base) is not None
    assert [path for path in sorted(bench.recipe.parent.iterdir()) if path != bench.base] == before
    assert f"{KEY}: {OLDER}" in (bench.base / "pins" / bench.recipe.with_suffix(".lock").name).read_text()
    assert bench.prepare().loaded.recipe.sources["text"].revision == OLDER


def test_refresh_lock_pins_the_current_commit_and_runs_the_stages_again(bench, hub):
    bench.run(last="tokenizer")
    bench.calls()
    hub.commit = NEWER
    bench.run("run.data.refresh_lock=true", last="tokenizer")
    assert "1 of them to a different commit than before" in bench.display.text
    assert lock_of(bench) == [f"{KEY}: {NEWER}"]
    assert bench.calls() == ["tokenizer"]
    with pytest.raises(PreflightError, match="asks the hub, but this run is offline"):
        bench.run("run.data.refresh_lock=true", "run.offline=true")


def test_offline_run_without_lock_file_pins_what_is_downloaded(bench, hub):
    """The download may come from another recipe. The hub is not asked."""
    bench.run()
    bench.calls()
    bench.recipe.with_suffix(".lock").unlink()
    before = len(hub.requests)
    bench.run("run.offline=true", "sft.horizon.steps=5")
    assert bench.calls() == ["sft", "chat_eval"]
    assert lock_of(bench) == [f"{KEY}: {OLDER}"]
    assert len(hub.requests) == before


def test_offline_run_without_download_names_each_source_once(bench, hub):
    for content in (None, f"{KEY}: {OLDER}\n"):
        if content is not None:
            bench.recipe.with_suffix(".lock").write_text(content)
        with pytest.raises(PreflightError) as caught:
            bench.run("run.offline=true")
        assert str(caught.value).count("is not downloaded") == 2
        assert "hf://datasets/some/texts/texts" in str(caught.value)
    assert hub.requests == [] and bench.calls() == []


def test_pins_name_every_missing_revision_and_data_set_and_write_nothing(bench, hub):
    with pytest.raises(PreflightError) as caught:
        bench.run("sources.text.revision=v9", "sources.chats.uri=hf://datasets/some/nothing")
    assert "hf://datasets/some/texts has no revision `v9`" in str(caught.value)
    assert "hf://datasets/some/nothing: no such data set" in str(caught.value)
    assert not bench.recipe.with_suffix(".lock").exists() and bench.calls() == []


def test_downloads_are_checked_before_the_first_stage(bench, hub):
    """Preflight cannot check data that is not on disk. Bad chat data must stop the run before the tokenizer."""
    hub.files["chats/train.jsonl"] = b'{"text": "no chat"}\n'
    with pytest.raises(PreflightError, match=r"source `chats` .*1 of 1 conversation cannot be used"):
        bench.run()
    assert bench.calls() == []
    (run,) = list_runs(bench.base)
    assert run.state.status == "failed"


def test_plan_reads_the_lock_file_without_asking_the_hub(bench, hub):
    """A commit written into the recipe gives the same plan and needs no lock file."""
    plain = bench.prepare().plan.stage("tokenizer").source_digests
    bench.recipe.with_suffix(".lock").write_text(f"# kept\n\n{KEY}: {OLDER}\n")
    locked = bench.prepare().plan.stage("tokenizer").source_digests
    flags = [f"sources.text.revision={OLDER}", f"sources.chats.revision={OLDER}"]
    assert bench.prepare(*flags).plan.stage("tokenizer").source_digests == locked != plain
    assert pin_sources(bench.load(*flags), bench.base) is None
    assert hub.requests == []


@pytest.mark.parametrize("line", ["hf://datasets/some/texts@main: c0ffee", "some/texts@main: " + OLDER, "nonsense"])
def test_broken_lock_file_is_refused_with_its_line(bench, hub, line):
    """Ignoring the line would silently read different data."""
    bench.recipe.with_suffix(".lock").write_text(f"# kept\n{line}\n")
    with pytest.raises(PreflightError, match=r"tiny\.lock:2: expected `hf://datasets/OWNER/NAME@REVISION: COMMIT`"):
        bench.run()


def test_lock_file_with_two_commits_for_a_data_set_is_refused(bench, hub):
    """A merge of two branches may leave both."""
    bench.recipe.with_suffix(".lock").write_text(f"{KEY}: {OLDER}\n{KEY}: {OLDER}\n{KEY}: {NEWER}\n")
    with pytest.raises(PreflightError, match=rf"tiny\.lock:3: another commit of {KEY} than above"):
        bench.run()


def test_scratch_of_a_killed_process_beside_the_lock_file_is_deleted(bench, hub):
    leftover = bench.recipe.with_name(".writing-999999999-tiny.lock")
    leftover.write_text("half")
    pin_sources(bench.load(), bench.base)
    assert lock_of(bench) == [f"{KEY}: {OLDER}"] and not leftover.exists()


def test_lock_file_that_cannot_be_written_is_named_with_a_remedy(bench, hub, monkeypatch):
    write = Path.write_bytes

    def refuse(self, *arguments, **options):
        if ".lock" in self.name:
            raise PermissionError(13, "Permission denied")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(PreflightError, match=r"tiny\.lock: cannot be written .*as its `revision`"):
        pin_sources(bench.load("sources.chats={path: chats.jsonl}"), bench.base)


def test_recipe_without_hub_sources_gets_no_lock_file(bench):
    bench.run(last="tokenizer")
    assert not bench.recipe.with_suffix(".lock").exists()


@pytest.fixture
def shared_cache(hub, tmp_path, monkeypatch):
    """The cache of another tool that has downloaded the hub's data set."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    folder = tmp_path / "shared"
    snapshot_download("some/texts", repo_type="dataset", endpoint=hub.url, cache_dir=str(folder), token=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    hub.requests.clear()
    return folder


def test_offline_run_pins_and_reads_what_another_tool_has_downloaded(bench, hub, shared_cache):
    bench.run("run.offline=true")
    assert lock_of(bench) == [f"{KEY}: {OLDER}"]
    assert bench.calls() == ["tokenizer", "pretrain", "base_eval", "sft", "chat_eval"]
    assert hub.requests == []


def test_command_with_hf_hub_offline_opens_no_connection(bench, hub, shared_cache):
    """A real stage in its own process reads the files of the shared cache."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(shared_cache),
        "NANOCHAT_BASE_DIR": str(bench.base),
    }
    command = [sys.executable, "-m", "nanochat.cli.run", str(bench.recipe), "--only", "tokenizer"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1-tokenizer: done" in done.stdout + done.stderr
    assert hub.requests == []


def test_pins_say_that_the_parquet_copy_is_read(bench, hub):
    hub.parquet_copy = {
        f"{name}/train/0000.jsonl": content
        for name, content in (
            ("texts", hub.files.pop("texts/train.jsonl")),
            ("chats", hub.files.pop("chats/train.jsonl")),
        )
    }
    bench.run()
    assert lock_of(bench) == [f"{KEY}: {hub.parquet_commit}"]
    assert "read from `refs/convert/parquet`, the hub's parquet copy of the data set" in bench.display.text
