"""Stage and run folders name their files, find each other, and are cleared safely."""

from __future__ import annotations

from datetime import datetime

from nanochat.storage import layout
from nanochat.storage.layout import StageFolder, run_folders, runs_folder, stage_folder


def test_stage_folder_is_named_after_stage_and_fingerprint(tmp_path):
    folder = stage_folder(tmp_path, "pretrain", "0123456789abcdef")
    assert folder.path == tmp_path / "stages" / "pretrain" / "0123456789ab"
    assert folder.stage == "pretrain"
    assert folder.suite("arc").relative_to(folder.path).as_posix() == "suites/arc.json"
    assert folder.table("arc").relative_to(folder.path).as_posix() == "out/tables/arc.jsonl"


def test_stage_folders_lists_every_stage_sorted(tmp_path):
    expected = [stage_folder(tmp_path, stage, digit * 64) for stage, digit in (("pretrain", "7"), ("sft", "3"))]
    for folder in reversed(expected):
        folder.out.mkdir(parents=True)
    assert list(layout.stage_folders(tmp_path)) == expected


def test_stage_folder_clear_keeps_only_the_lock(tmp_path):
    folder = StageFolder(tmp_path / "pretrain" / "0123")
    folder.model.mkdir(parents=True)
    for path in (folder.lock, folder.record, folder.result):
        path.touch()
    folder.clear()
    assert list(folder.path.iterdir()) == [folder.lock]


def test_create_run_folder_numbers_the_runs_of_one_second(tmp_path):
    now = datetime(2026, 1, 2, 3, 4, 5)
    names = [layout.create_run_folder(tmp_path, "tiny", now).path.name for _ in range(3)]
    assert names == ["20260102-030405", "20260102-030405-2", "20260102-030405-3"]


def test_run_folders_are_sorted_by_time_across_names(tmp_path):
    for name, time in (("b", "20260101-000000"), ("a", "20260103-000000"), ("a", "20260102-000000")):
        (runs_folder(tmp_path) / name / time).mkdir(parents=True)
        (runs_folder(tmp_path) / name / time / "run.json").touch()
    found = [folder.path.relative_to(tmp_path).as_posix() for folder in run_folders(tmp_path)]
    assert found == ["runs/b/20260101-000000", "runs/a/20260102-000000", "runs/a/20260103-000000"]
    assert [folder.path.name for folder in run_folders(tmp_path, "b")] == ["20260101-000000"]
