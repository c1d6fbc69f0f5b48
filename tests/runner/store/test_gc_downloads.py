"""Tests that gc deletes the downloads that no run and no fetched recipe needs, and keeps those that are continued."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil

import pytest

from nanochat.cli.run import main
from nanochat.errors import InterruptedRun, PreflightError
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.preflight.fetch import fetch_recipe
from nanochat.runner.store.cleanup.gc import delete_unneeded_downloads, find_unneeded_downloads

OLDER, NEWER = "c0ffee" + "0" * 34, "d" * 40
TEXT = "".join(json.dumps({"text": f"hello world {i}"}) + "\n" for i in range(50)).encode()
CHATS = b'{"prompt": "hello", "completion": "world"}\n'
DEAD_PID = 999_999_999


@pytest.fixture
def remote(bench, fake_hub, web):
    """The bench, with its text on the hub and its chats at an address."""
    fake_hub.files["train.jsonl"] = TEXT
    web.files["/chats.jsonl"] = CHATS
    address = f"uri: '{web.url}/chats.jsonl', sha256: {hashlib.sha256(CHATS).hexdigest()}"
    text = bench.recipe.read_text().replace("{path: text.txt, ", "{uri: 'hf://datasets/some/texts', ")
    bench.recipe.write_text(text.replace("path: chats.jsonl", address))
    return bench


def fetch(bench, *overrides):
    """Download the bench's data without a run, and return the display."""
    bench.display = bench.make_display()
    fetch_recipe(bench.recipe, overrides, base=bench.base, display=bench.display)


def downloads_in(base):
    """The folders of the downloads: of the address, and of the commits of the hub's data set."""
    commits = [path.name for path in (base / "hub/datasets/some/texts").glob("*") if len(path.name) == 40]
    return len(list((base / "downloads").glob("*"))), sorted(commits)


def delete(base):
    return [folder.path for folder in delete_unneeded_downloads(base)]


def test_gc_keeps_the_downloads_of_a_run_and_deletes_them_after_it(remote):
    run = remote.run()
    assert find_unneeded_downloads(remote.base) == [] and delete(remote.base) == []
    assert downloads_in(remote.base) == (1, [OLDER])
    shutil.rmtree(run.folder.path)
    found = find_unneeded_downloads(remote.base)
    assert sorted(folder.size_bytes >= len(content) for folder, content in zip(found, (CHATS, TEXT), strict=True))
    assert delete(remote.base) == [folder.path for folder in found]
    assert [path for name in ("downloads", "hub") for path in (remote.base / name).rglob("*") if path.is_file()] == []
    fetch(remote)
    assert downloads_in(remote.base) == (1, [OLDER])


def test_gc_command_reports_downloads_and_deletes_them(remote, capsys):
    fetch(remote)
    remote.recipe.unlink()
    assert main(["gc", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{remote.base / 'hub/datasets/some/texts' / OLDER} (" in shown and "and 2 downloads: " in shown
    assert downloads_in(remote.base) == (1, [OLDER])
    assert main(["gc"]) == 0
    assert "deleted 0 stage outputs and 2 downloads: " in capsys.readouterr().out
    assert downloads_in(remote.base) == (0, [])


def test_gc_deletes_only_the_commit_that_no_run_needs(remote, fake_hub):
    first = remote.run(last="tokenizer")
    fake_hub.commit = NEWER
    remote.run("run.data.refresh_lock=true", last="tokenizer")
    assert delete(remote.base) == [] and downloads_in(remote.base)[1] == [OLDER, NEWER]
    shutil.rmtree(first.folder.path)
    assert delete(remote.base) == [remote.base / "hub/datasets/some/texts" / OLDER]
    before = len(fake_hub.requests)
    remote.run("run.offline=true", last="tokenizer", force=("tokenizer",))
    assert len(fake_hub.requests) == before


def test_gc_keeps_what_fetch_has_downloaded_as_long_as_the_recipe_exists(remote):
    fetch(remote)
    assert delete(remote.base) == [] and downloads_in(remote.base) == (1, [OLDER])
    remote.recipe.unlink()
    assert len(delete(remote.base)) == 2 and downloads_in(remote.base) == (0, [])
    assert list((remote.base / "fetched").iterdir()) == []


def test_gc_keeps_the_parts_of_a_needed_download_and_deletes_other_leftovers(remote):
    def stop(title):
        raise InterruptedRun("stopped")

    remote.display.on_progress = stop
    with pytest.raises(InterruptedRun):
        run_recipe(remote.load(), remote.request(), remote.display)
    (part,) = (remote.base / f"hub/datasets/some/texts/parts/{OLDER}").iterdir()
    (remote.base / "hub/datasets/some/texts/revisions").mkdir(exist_ok=True)
    leftover = remote.base / f"hub/datasets/some/texts/revisions/.writing-{DEAD_PID}-main"
    for path in (leftover, remote.base / f".writing-{DEAD_PID}-file_digests.json"):
        path.write_text("half")
    assert delete(remote.base) == []
    assert part.exists() and not list(remote.base.rglob(".writing-*"))
    fetch(remote)
    assert not part.exists()
    (folder,) = (remote.base / "downloads").iterdir()
    (folder / "parts").mkdir()
    (folder / "parts" / "old").write_bytes(bytes(100))
    assert delete(remote.base) == [] and not (folder / "parts").exists()


def test_gc_keeps_a_download_in_progress(remote):
    fetch(remote)
    remote.recipe.unlink()
    (folder,) = (remote.base / "downloads").iterdir()
    with (folder / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert delete(remote.base) == [remote.base / "hub/datasets/some/texts" / OLDER]
    assert delete(remote.base) == [folder]


def test_gc_deletes_nothing_if_the_list_of_a_run_cannot_be_read(remote):
    fetch(remote)
    run = remote.run(last="tokenizer")
    run.folder.data.write_text("{")
    with pytest.raises(PreflightError, match=r"data\.json cannot be read, so it is unknown which data are needed"):
        delete(remote.base)
    assert downloads_in(remote.base) == (1, [OLDER])


def test_run_names_its_downloads_before_it_uses_them(remote):
    """Otherwise gc could delete a download after the run has found it, and before the run is seen to need it."""
    lists = []

    def read_lists(title):
        lists.extend(json.loads(path.read_text()) for path in remote.base.glob("runs/*/*/data.json"))

    remote.display.on_progress = read_lists
    run_recipe(remote.load(), remote.request(), remote.display)
    assert f"hub/datasets/some/texts/{OLDER}" in lists[0]["folders"] and len(lists[0]["folders"]) == 2


@pytest.mark.parametrize("pattern", ["downloads/*/files/chats.jsonl", f"hub/datasets/some/texts/{OLDER}/train.jsonl"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda content: content[:-3] + b"X}\n", "is damaged"),
        (lambda content: content[:-2], "is missing or cut off"),
        (lambda content: None, "is missing or cut off"),
    ],
)
def test_damaged_download_is_named_and_downloaded_again_or_refused_offline(remote, pattern, content, what):
    fetch(remote)
    (path,) = remote.base.glob(pattern)
    before = path.read_bytes()
    path.unlink()
    if (damaged := content(before)) is not None:
        path.write_bytes(damaged)
    with pytest.raises(PreflightError, match=f"{path} {what}; run once with the network, which downloads it again"):
        fetch(remote, "run.offline=true")
    fetch(remote)
    assert f"{path} {what}; downloading it again" in remote.display.text
    assert path.read_bytes() == before
