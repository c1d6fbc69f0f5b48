"""Tests that a run converts what its stages cannot read directly, once, before the first stage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from nanochat.errors import InterruptedRun, PreflightError, StageError
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.preflight.plan_report import plan_report_json, plan_report_text
from nanochat.runner.store.cleanup.gc import delete_unneeded_copies, find_unneeded_copies


@pytest.fixture
def json_bench(bench):
    """A bench whose documents are in a json file."""
    bench.recipe.write_text(bench.recipe.read_text().replace("text.txt", "text.json"))
    (bench.folder / "text.json").write_text(json.dumps([{"text": f"hello world {i}\n"} for i in range(50)]))
    return bench


def plan_of(bench, show):
    prepared = bench.prepare()
    return show(prepared, prepared.look_up_cache(), [stage.name for stage in prepared.plan.stages])


def copies(bench):
    return sorted(path for path in (bench.base / "ingest").glob("*") if path.is_dir())


def test_plan_names_files_to_convert_and_their_disk_until_they_are_converted(json_bench):
    size = (json_bench.folder / "text.json").stat().st_size
    line = "source `text`: text.json, about 1.46 KiB of disk"
    assert size == 1490 and line in plan_of(json_bench, plan_report_text)
    files = [str(json_bench.folder / "text.json")]
    conversion = {"source": "text", "files": files, "disk_bytes": size}
    assert plan_of(json_bench, plan_report_json)["conversions"] == [conversion]
    json_bench.run(last="tokenizer")
    assert "text.json, about" not in plan_of(json_bench, plan_report_text)
    assert plan_of(json_bench, plan_report_json)["conversions"] == []


def test_run_converts_before_the_first_stage_and_only_once(json_bench):
    json_bench.run(last="tokenizer")
    assert "converting 1 file (1.46 KiB)" in json_bench.display.text
    assert json_bench.calls()[0] == "tokenizer"
    (copy,) = copies(json_bench)
    before = [path.stat().st_ino for path in sorted(copy.iterdir())]
    json_bench.run(last="tokenizer", force=("tokenizer",))
    assert "converting" not in json_bench.display.text
    assert [path.stat().st_ino for path in sorted(copy.iterdir())] == before


def test_file_in_place_of_the_folder_of_copies_is_named(json_bench):
    json_bench.base.mkdir()
    (json_bench.base / "ingest").write_text("")
    with pytest.raises(PreflightError, match=r"ingest is not a folder, but must be one; move it away"):
        json_bench.run(last="tokenizer")
    assert json_bench.calls() == []


def flip(path):
    """Change one byte, but neither size nor time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_damaged_copy_is_named_and_converted_again_before_a_stage_reads_it(json_bench):
    """Neither size nor time say that it is damaged, and a stage that runs on its own refuses it."""
    json_bench.run(last="tokenizer")
    (copy,) = copies(json_bench)
    part = copy / "text.json-00000.parquet"
    before = part.read_bytes()
    flip(part)
    job = json_bench.stage_folder("tokenizer").job
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(json_bench.base)}
    alone = subprocess.run([sys.executable, "-m", "nanochat.stages", job], env=environment, capture_output=True)
    assert alone.returncode == StageError.exit_code
    assert "text.json; the same command converts it again" in json_bench.stage_folder("tokenizer").error.read_text()
    json_bench.run(last="tokenizer", force=("tokenizer",))
    assert f"text.json is converted again: its copy {copy} is damaged" in json_bench.display.text
    assert part.read_bytes() == before


def test_damaged_list_of_the_data_that_a_run_needs_is_written_again(json_bench):
    """After a power cut it may be empty."""
    json_bench.control(tokenizer="fail")
    with pytest.raises(StageError):
        json_bench.run(last="tokenizer")
    (listed,) = json_bench.base.glob("runs/*/*/data.json")
    before = listed.read_text()
    listed.write_text("")
    json_bench.control()
    json_bench.run(last="tokenizer")
    assert listed.read_text() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [('[{"text": "a"},\n{"text" "b"', r"text\.json:2: not JSON: Expecting"), ('[{"body": "a"}]', "no column `text`")],
)
def test_file_that_cannot_be_converted_or_read_stops_the_run_before_a_stage(json_bench, content, message):
    (json_bench.folder / "text.json").write_text(content)
    with pytest.raises(PreflightError, match=message):
        json_bench.run()
    assert json_bench.calls() == []


def test_file_without_rows_is_refused_as_empty(json_bench):
    (json_bench.folder / "text.json").write_text("[]")
    with pytest.raises(PreflightError, match=r"source `text` .*no file holds text; left out: text\.json \(empty\)"):
        json_bench.run()


def test_interrupt_stops_the_conversion(json_bench):
    json_bench.interrupt()
    with pytest.raises(InterruptedRun, match="stopped while converting files"):
        run_recipe(json_bench.load(), json_bench.request(), json_bench.display)
    assert json_bench.calls() == []
    json_bench.run(last="tokenizer")


def test_gc_deletes_copies_that_no_run_reads(json_bench):
    run = json_bench.run(last="tokenizer")
    assert find_unneeded_copies(json_bench.base) == []
    (copy,) = copies(json_bench)
    shutil.rmtree(run.folder.path)
    assert [entry.path for entry in delete_unneeded_copies(json_bench.base)] == [copy]
    assert copies(json_bench) == []
