"""`plan` finds the problems with the data that a run would be refused for, and names the data that only it checks."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.cli.run import main
from nanochat.errors import PreflightError
from nanochat.runner.preflight.plan_checks import PlanChecks, check_plan
from nanochat.runner.preflight.plan_report import plan_report_json, plan_report_text


def test_plan_of_a_good_recipe_has_no_problems(bench):
    assert check_plan(bench.prepare()) == PlanChecks()


def test_plan_ends_with_3_for_the_chats_that_the_run_refuses(bench, capsys):
    (bench.folder / "chats.jsonl").write_text('{"foo": "hello", "bar": "world"}\n')
    with pytest.raises(PreflightError) as refused:
        bench.run()
    assert main(["plan", str(bench.recipe)]) == 3
    said = capsys.readouterr()
    (problem,) = check_plan(bench.prepare()).problems
    assert problem in str(refused.value) and problem in said.out
    assert "1 problem to fix before the run can start" in said.err
    assert main(["plan", str(bench.recipe), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["problems"] == [problem]


def test_plan_ends_with_3_if_data_are_missing(bench, capsys):
    """They are listed once."""
    (bench.folder / "chats.jsonl").unlink()
    assert main(["plan", str(bench.recipe)]) == 3
    assert capsys.readouterr().out.count("chats.jsonl: no such file") == 1


def test_plan_checks_the_text_of_a_folder_that_also_has_parquet_rows(bench):
    notes = bench.folder / "notes"
    notes.mkdir()
    pq.write_table(pa.table({"text": ["one two", "three four"]}), notes / "rows.parquet")
    (notes / "good.md").write_text("a note\n")
    (notes / "latin.md").write_bytes(b"caf\xe9\n")
    checks = check_plan(bench.prepare(f"sources.text.path={notes}"))
    assert checks.unchecked == ()
    assert any("latin.md:1: not UTF-8 at byte 4 of the line (0xE9)" in note for note in checks.left_out)


def test_plan_names_the_data_that_only_the_run_checks(bench, capsys, monkeypatch):
    """Large parquet, tables that are converted first, and data sets that are not downloaded."""
    monkeypatch.setattr("nanochat.data.files.file_sizes.SMALL_BYTES", 100)
    pq.write_table(pa.table({"text": ["one two", "three four"]}), bench.folder / "text.parquet")
    (bench.folder / "chats.csv").write_text("prompt,completion\nhello,world\n")
    files = {"text": "text.parquet", "chats": "chats.csv"}
    sources = tuple(f"sources.{name}.path={bench.folder / file}" for name, file in files.items())
    assert check_plan(bench.prepare(*sources)).unchecked == ("large parquet: text", "not converted: chats")
    settings = [word for source in sources for word in ("--set", source)]
    assert main(["plan", str(bench.recipe), *settings]) == 0
    shown = capsys.readouterr().out
    assert "data that only the run checks (`nanochat-run fetch " in shown
    assert "` gets them, for this plan to check)\n  - large parquet: text\n  - not converted: chats\n" in shown
    assert main(["plan", str(bench.recipe), *settings[:2]]) == 0
    assert "data that only the run checks\n  - large parquet: text\n" in capsys.readouterr().out
    hub = "sources.chats={uri: hf://datasets/owner/name}"
    assert check_plan(bench.prepare(hub)).unchecked == ("not downloaded: chats",)


def test_plan_names_the_form_of_chats_in_parquet_files(bench):
    pq.write_table(pa.table({"prompt": ["hello"], "completion": ["world"]}), bench.folder / "chats.parquet")
    prepared = bench.prepare(f"sources.chats.path={bench.folder / 'chats.parquet'}")
    shown = (prepared, prepared.look_up_cache(), ["sft"], PlanChecks())
    form = "chats: question and answer (`prompt`, `completion`)"
    assert form in plan_report_text(*shown)
    assert form in str(plan_report_json(*shown)["data"])


def test_plan_reads_no_more_text_than_a_run_reads_of_one_source(bench, monkeypatch):
    """Of a source that is larger, both read the beginning."""
    sizes = {name: (bench.folder / name).stat().st_size for name in ("text.txt", "chats.jsonl")}
    (bench.folder / "chats.jsonl").write_text('{"foo": 1}\n')
    monkeypatch.setattr("nanochat.data.files.file_sizes.SMALL_BYTES", sizes["text.txt"])
    assert check_plan(bench.prepare()) == PlanChecks(unchecked=("large: chats",))
    monkeypatch.setattr("nanochat.data.files.file_sizes.SMALL_BYTES", 8)
    assert check_plan(bench.prepare()).unchecked == ()
    assert "foo" in check_plan(bench.prepare()).problems[0]


def test_plan_for_a_mac_says_that_it_counts_what_this_machine_has_cached(bench, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(bench.base))
    command = ["plan", str(bench.recipe), "--mac", "16"]
    assert main(command) == 0
    assert "cached here" not in capsys.readouterr().out
    bench.run(last="tokenizer")
    assert main(command) == 0
    assert "stages that are cached here count as done on the Mac too" in capsys.readouterr().out
    assert main(command[:2]) == 0
    assert "cached here" not in capsys.readouterr().out
