"""Hub sources are pinned at a recipe's first run, in a lock file beside it, and read from there afterwards."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from nanochat.errors import PreflightError
from nanochat.runner.preflight.hub_pins import pin_sources
from nanochat.runner.store.runs import list_runs

NEWER = "d" * 40
OLDER = "c0ffee" + "0" * 34
KEY = "hf://datasets/some/texts@main"


def _fake_hub():
    """The data room's server: fixtures of another folder cannot be asked for, and tests are no package."""
    path = Path(__file__).parents[1] / "data" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeHub()


@pytest.fixture
def hub(bench, monkeypatch):
    """A hub with the bench's text and chats, of which the bench's recipe now reads."""
    server = _fake_hub()
    lines = "".join(json.dumps({"text": f"hello world {i}"}) + "\n" for i in range(50))
    server.files["texts/train.jsonl"] = lines.encode()
    server.files["chats/train.jsonl"] = b'{"prompt": "hello", "completion": "world"}\n'
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    text = bench.recipe.read_text()
    text = text.replace("{path: text.txt, ", "{uri: 'hf://datasets/some/texts/texts', ")
    text = text.replace("{path: chats.jsonl}", "{uri: 'hf://datasets/some/texts/chats'}")
    bench.recipe.write_text(text)
    yield server
    server.close()


def lock_of(bench):
    path = bench.recipe.with_suffix(".lock")
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_the_first_run_pins_and_later_ones_read_the_same_data(bench, hub):
    """Also when the branch has moved on and the download is gone."""
    bench.run()
    assert "pinned 1 hub data set in" in bench.display.text
    assert lock_of(bench) == [f"{KEY}: {OLDER}"]
    assert bench.calls() == ["tokenizer", "pretrain", "base_eval", "sft", "chat_eval"]
    hub.commit = NEWER
    before = len(hub.requests)
    bench.run()
    assert "pinned" not in bench.display.text and bench.calls() == []
    assert len(hub.requests) == before
    assert f"revision: {OLDER}" in bench.run().folder.resolved.read_text()


def test_refreshing_takes_what_the_branch_names_now(bench, hub):
    """Other data: everything that reads them runs again."""
    bench.run()
    bench.calls()
    hub.commit = NEWER
    bench.run("run.data.refresh_lock=true")
    assert "1 of them to a different commit than before" in bench.display.text
    assert lock_of(bench) == [f"{KEY}: {NEWER}"]
    assert bench.calls() == ["tokenizer", "pretrain", "base_eval", "sft", "chat_eval"]
    with pytest.raises(PreflightError, match="asks the hub, but this run is offline"):
        bench.run("run.data.refresh_lock=true", "run.offline=true")


def test_offline_a_recipe_without_a_lock_takes_what_is_downloaded(bench, hub):
    """Of another recipe, say; nobody is asked."""
    bench.run()
    bench.calls()
    bench.recipe.with_suffix(".lock").unlink()
    before = len(hub.requests)
    bench.run("run.offline=true", "sft.horizon.steps=5")
    assert bench.calls() == ["sft", "chat_eval"]
    assert lock_of(bench) == [f"{KEY}: {OLDER}"]
    assert len(hub.requests) == before


def test_offline_without_a_download_ends_at_once_and_names_it(bench, hub):
    """With and without a lock; each source once."""
    for content in (None, f"{KEY}: {OLDER}\n"):
        if content is not None:
            bench.recipe.with_suffix(".lock").write_text(content)
        with pytest.raises(PreflightError) as caught:
            bench.run("run.offline=true")
        assert str(caught.value).count("is not downloaded") == 2
        assert "hf://datasets/some/texts/texts" in str(caught.value)
    assert hub.requests == [] and bench.calls() == []


def test_a_missing_revision_is_named_and_nothing_is_pinned(bench, hub):
    """With every other that cannot be had."""
    with pytest.raises(PreflightError) as caught:
        bench.run("sources.text.revision=v9", "sources.chats.uri=hf://datasets/some/nothing")
    assert "hf://datasets/some/texts has no revision `v9`" in str(caught.value)
    assert "hf://datasets/some/nothing: no such data set" in str(caught.value)
    assert not bench.recipe.with_suffix(".lock").exists() and bench.calls() == []


def test_what_is_downloaded_is_checked_before_the_first_stage(bench, hub):
    """Preflight could not look at it: nothing was here. The chats of a later stage end the run before the tokenizer."""
    hub.files["chats/train.jsonl"] = b'{"text": "no chat"}\n'
    with pytest.raises(PreflightError, match=r"source `chats` .*1 of 1 conversations cannot be used"):
        bench.run()
    assert bench.calls() == []
    (run,) = list_runs(bench.base)
    assert run.state.status == "failed"


def test_a_plan_reads_the_lock_and_asks_nobody(bench, hub):
    """As a commit in the recipe would, which needs no lock."""
    plain = bench.prepare().plan.stage("tokenizer").source_digests
    bench.recipe.with_suffix(".lock").write_text(f"# kept\n\n{KEY}: {OLDER}\n")
    locked = bench.prepare().plan.stage("tokenizer").source_digests
    flags = [f"sources.text.revision={OLDER}", f"sources.chats.revision={OLDER}"]
    assert bench.prepare(*flags).plan.stage("tokenizer").source_digests == locked != plain
    assert pin_sources(bench.load(*flags), bench.base) is None
    assert hub.requests == []


@pytest.mark.parametrize("line", ["hf://datasets/some/texts@main: c0ffee", "some/texts@main: " + OLDER, "nonsense"])
def test_a_broken_lock_is_named_with_its_line(bench, hub, line):
    """It is not passed over: the data would be others."""
    bench.recipe.with_suffix(".lock").write_text(f"# kept\n{line}\n")
    with pytest.raises(PreflightError, match=r"tiny\.lock:2: expected `hf://datasets/OWNER/NAME@REVISION: COMMIT`"):
        bench.run()


def test_a_folder_that_cannot_be_written_is_named_with_a_way_out(bench, hub, monkeypatch):
    """As one that belongs to the system."""

    write = Path.write_bytes

    def refuse(self, *arguments, **options):
        if ".lock" in self.name:
            raise PermissionError(13, "Permission denied")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(PreflightError, match=r"tiny\.lock: cannot be written .*as its `revision`"):
        pin_sources(bench.load("sources.chats={path: chats.jsonl}"), bench.base)


def test_sources_without_a_hub_need_no_lock(bench):
    """No file appears."""
    bench.run()
    assert not bench.recipe.with_suffix(".lock").exists()
