"""Tests that gc deletes what no run refers to, and nothing else, even if an earlier gc was killed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading

import pytest

from nanochat.cli.run import main
from nanochat.data.token_cache.parts import PartList, write_list
from nanochat.errors import PreflightError
from nanochat.runner.store.cleanup.gc import (
    delete_dead_scratch,
    delete_unreferenced_stages,
    delete_unreferenced_token_caches,
    find_dead_scratch,
    find_unreferenced_stages,
    find_unreferenced_token_caches,
)
from nanochat.runner.store.locks import claims, stage_lock
from nanochat.storage.layout import StageFolder, stage_folders


def test_gc_deletes_only_stages_that_no_run_refers_to(finished):
    second = finished.run("sft.horizon.steps=5", "name=second")
    assert find_unreferenced_stages(finished.base) == []
    shutil.rmtree(second.folder.path)
    for unreferenced in (find_unreferenced_stages, delete_unreferenced_stages):
        assert {folder.path.parent.name for folder in unreferenced(finished.base)} == {"sft", "chat_eval"}
    assert delete_unreferenced_stages(finished.base) == []
    finished.calls()
    finished.run()
    assert finished.calls() == []


def test_gc_command_without_work_says_how_to_remove_a_run(finished, capsys):
    hint = f"to remove a run, delete its folder in {finished.base / 'runs'} and type this command again"
    assert main(["gc"]) == 0
    assert hint in capsys.readouterr().out
    shutil.rmtree(finished.base / "runs")
    assert main(["gc"]) == 0
    assert main(["gc"]) == 0
    assert hint not in capsys.readouterr().out


def test_gc_keeps_weights_that_a_run_starts_from(bench):
    """The run that trained the weights is deleted, but a fine-tuned run still refers to them."""
    first = bench.run(last="pretrain")
    gone = ("tokenizer=null", "model=null", "pretrain=null", "base_eval=null", "chat_eval=null", "expect=null")
    bench.run(*gone, "name=tuned", "sft.init_from=tiny", "sft.tokens_per_step=64")
    shutil.rmtree(first.folder.path)
    assert {folder.path.parent.name for folder in delete_unreferenced_stages(bench.base)} == {"tokenizer"}
    assert next((bench.base / "stages" / "pretrain").glob("*/out/model/model.safetensors")).exists()


def test_gc_waits_while_a_run_claims_a_cached_stage(finished):
    run = finished.first
    kept = run.folder.path.rename(finished.folder / "aside")
    with claims(finished.base):
        collecting = threading.Thread(target=delete_unreferenced_stages, args=(finished.base,))
        collecting.start()
        collecting.join(0.3)
        assert collecting.is_alive()
        kept.rename(run.folder.path)
    collecting.join()
    assert all(StageFolder(f.path).record.exists() for f in stage_folders(finished.base))
    assert len(list(stage_folders(finished.base))) == 5


def test_gc_keeps_a_locked_stage(finished):
    run = finished.first
    shutil.rmtree(run.folder.path)
    folder = finished.stage_folder("pretrain")
    with stage_lock(folder):
        assert "pretrain" not in {folder.path.parent.name for folder in delete_unreferenced_stages(finished.base)}
    assert folder.record.exists()


def test_gc_deletes_what_a_killed_gc_left(finished, monkeypatch):
    """A folder is renamed before it is deleted, so that a half-deleted one never looks finished."""
    run = finished.first
    shutil.rmtree(run.folder.path)

    def killed(path):
        (path / "record.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nanochat.runner.store.cleanup.gc.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            delete_unreferenced_stages(finished.base)
    assert len(list((finished.base / "stages").glob("*/.deleting-*"))) == 1
    delete_unreferenced_stages(finished.base)
    assert not list((finished.base / "stages").glob("*/*"))


def test_gc_deletes_nothing_if_a_run_cannot_be_read(finished):
    run = finished.first
    run.folder.state.write_text("{")
    with pytest.raises(PreflightError, match="cannot be read"):
        delete_unreferenced_stages(finished.base)
    assert all(StageFolder(f.path).record.exists() for f in stage_folders(finished.base))


def test_gc_deletes_token_caches_whose_tokenizer_no_run_uses(finished, locks_of_nfs):
    """A cache that is being written is kept."""
    run = finished.first
    (finished.stage_folder("tokenizer").out / "tokenizer.model").write_bytes(b"pieces")
    digests = {"of the run": hashlib.sha256(b"pieces").hexdigest(), "of none": "0" * 64, "being made": "1" * 64}
    for name, digest in digests.items():
        folder = finished.base / "tokens" / name
        folder.mkdir(parents=True)
        write_list(folder, PartList(key={"tokenizer": digest}))
        (folder / ".lock").touch()
    with (finished.base / "tokens" / "being made" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert [folder.path.name for folder in find_unreferenced_token_caches(finished.base)] == ["of none"]
        assert [folder.path.name for folder in delete_unreferenced_token_caches(finished.base)] == ["of none"]
    assert [folder.path.name for folder in delete_unreferenced_token_caches(finished.base)] == ["being made"]
    shutil.rmtree(run.folder.path)
    assert [folder.path.name for folder in delete_unreferenced_token_caches(finished.base)] == ["of the run"]
    assert list((finished.base / "tokens").iterdir()) == []


DEAD_PID = 999_999_999  # above the largest process id that Linux hands out


def test_gc_takes_a_folder_for_no_tokenizer(finished):
    (finished.stage_folder("tokenizer").out / "tokenizer.model").mkdir()
    assert find_unreferenced_token_caches(finished.base) == []


def test_gc_deletes_what_killed_processes_were_writing(finished):
    """What living processes write stays, and so does everything in a folder that is locked, whoever locks it."""
    run = finished.first
    stage, locked = finished.stage_folder("sft"), finished.stage_folder("pretrain")
    run.folder.plots.mkdir()
    dead = [
        run.folder.path / f".writing-{DEAD_PID}-run.json",
        run.folder.plots / f".writing-{DEAD_PID}-loss.png",
        stage.path / f".writing-{DEAD_PID}-tracking.json",
        stage.checkpoints / f".writing-{DEAD_PID}-step_00000004" / "state.json",
    ]
    kept = [
        run.folder.path / f".writing-{os.getppid()}-run.json",
        stage.path / ".writing-notes",
        locked.path / f".writing-{DEAD_PID}-record.json",
    ]
    for path in (*dead, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    found = {path if path.name != "state.json" else path.parent for path in dead}
    with stage_lock(locked):
        assert {item.path for item in find_dead_scratch(finished.base)} == found
        assert {item.path for item in delete_dead_scratch(finished.base)} == found
    assert not [path for path in dead if path.exists()] and all(path.exists() for path in kept)
    assert [item.path for item in delete_dead_scratch(finished.base)] == [kept[2]]
    finished.calls()
    finished.run()
    assert finished.calls() == []


def test_next_run_deletes_what_the_killed_one_was_writing_in_its_folder(finished):
    run = finished.first
    scratch = run.folder.path / f".writing-{DEAD_PID}-report.md"
    scratch.write_text("half")
    assert finished.run().folder == run.folder
    assert not scratch.exists()
