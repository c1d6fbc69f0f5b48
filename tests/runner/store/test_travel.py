"""Tests that runs travel: to another folder, another base folder and another machine."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from nanochat.cli import run as command
from nanochat.errors import PreflightError, RecipeError
from nanochat.runner.report.comparison import compare_runs, render_comparison
from nanochat.runner.report.refresh import refresh_report
from nanochat.runner.store.record import read_record
from nanochat.runner.store.run_catalog import find_run, resolve_model


@pytest.fixture
def archived(bench, tmp_path) -> Path:
    """The folder of a finished run that was packed and unpacked elsewhere, while its base folder is gone."""
    folder = bench.run().folder.path
    archive = tmp_path / "run.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname="archived")
    shutil.rmtree(bench.base)
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    return tmp_path / "archived"


def use(monkeypatch, base: Path) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))


def test_report_of_an_archived_run_is_kept_and_says_what_is_missing(archived, bench, monkeypatch, capsys):
    use(monkeypatch, bench.base)
    before = {path.name: path.read_bytes() for path in archived.glob("report.*")}
    assert command.main(["report", str(archived)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(before["report.md"].decode())
    assert "it is kept as it was written" in shown and f"searched in {bench.base}" in shown
    assert all(f"{stage}: no stages/{stage}/" in shown for stage in ("tokenizer", "pretrain", "sft"))
    assert {path.name: path.read_bytes() for path in archived.glob("report.*")} == before


def test_report_that_is_missing_too_names_the_lost_results(archived, bench):
    (archived / "report.md").unlink()
    shown = refresh_report(find_run(str(archived), bench.base), bench.base)
    assert "## Missing" in shown.text and "No stage is finished yet" not in shown.text
    assert "| 2-pretrain | finished |" in shown.text
    assert (archived / "report.md").read_text() == shown.text


def test_report_is_kept_if_only_a_log_or_the_samples_are_gone(bench):
    run = bench.run()
    pretrain = bench.stage_folder("pretrain")
    for path in (pretrain.log, pretrain.samples, pretrain.metrics, pretrain.sources):
        content = path.read_bytes()
        path.unlink()
        run.folder.report.write_text("all of it")
        shown = refresh_report(run, bench.base)
        assert shown.text == "all of it" and f"{path} is missing" in shown.remarks[1]
        path.write_bytes(content)
    pretrain.metrics.write_bytes(pretrain.metrics.read_bytes().replace(b"8.0", b"9.0"))
    assert "has changed since it was written" in refresh_report(run, bench.base).remarks[1]
    pretrain.metrics.write_bytes(pretrain.metrics.read_bytes().replace(b"9.0", b"8.0"))
    assert "| pretrain |" in refresh_report(run, bench.base).text


def test_stages_are_found_inside_an_archive_that_follows_links(bench, tmp_path):
    """`tar -h` and `cp -L` put the stages into the run's folder."""
    run = bench.run()
    archived = tmp_path / "archived"
    shutil.copytree(run.folder.path, archived, symlinks=False)
    shutil.rmtree(bench.base)
    found = find_run(str(archived), bench.base)
    assert not found.lost(bench.base)
    assert resolve_model(str(archived), bench.base) == archived / "stages" / "4-sft" / "out" / "model"
    assert "chat_eval | spelling | 0.75 |" in refresh_report(found, bench.base).text


def test_stages_are_found_in_the_base_folder_around_a_run(bench, tmp_path):
    """The base folder that NANOCHAT_BASE_DIR names is a different one."""
    reference = bench.run().reference
    copy = tmp_path / "copy"
    shutil.copytree(bench.base, copy, symlinks=True)
    shutil.rmtree(bench.base)
    folder = str(copy / "runs" / reference)
    assert resolve_model(folder, bench.base).is_relative_to(copy)
    assert find_run(folder, bench.base).reference == reference


def test_stages_are_found_in_the_named_base_folder_for_a_run_that_was_moved_out(bench, tmp_path):
    folder = bench.run().folder.path.rename(tmp_path / "moved")
    run = find_run(str(folder), bench.base)
    assert run.reference == str(folder)
    assert resolve_model(str(folder), bench.base).is_relative_to(bench.base)
    assert "chat_eval | spelling | 0.75 |" in refresh_report(run, bench.base).text


def test_result_that_another_run_computed_again_is_not_taken_for_that_of_the_run(bench):
    """On a GPU, the forced stage has other weights than those that the run was evaluated with."""
    run = bench.run()
    folder = bench.stage_folder("sft")
    read_record(folder).model_copy(update={"output_digest": "0" * 64}).write(folder.record)
    assert run.lost(bench.base) == {"sft": "computed again since, with another result"}
    with pytest.raises(PreflightError, match="sft: computed again since, with another result"):
        resolve_model(run.reference, bench.base)
    before = run.folder.report.read_text()
    assert refresh_report(run, bench.base).text == before


@pytest.mark.parametrize("verb", ["chat", "export", "init_from"])
def test_a_model_that_is_not_here_is_named_with_the_folders_that_were_searched(archived, bench, verb):
    """The model of another stage, which may be here, is no substitute."""
    if verb == "init_from":
        (archived / "stages").mkdir(exist_ok=True)
        prepared = bench.prepare(f"sft.init_from={archived}", "tokenizer=null", "model=null", "pretrain=null",
                                 "base_eval=null", "sft.tokens_per_step=64")  # fmt: skip
        (message,) = prepared.problems
    else:
        with pytest.raises(PreflightError) as caught:
            resolve_model(str(archived), bench.base)
        message = str(caught.value)
    assert "are not here" in message and f"searched in {bench.base}" in message and "NANOCHAT_BASE_DIR" in message


def test_pretrained_model_is_not_taken_for_a_lost_chat_model(bench):
    run = bench.run()
    shutil.rmtree(bench.base / "stages" / "sft")
    for reference in ("tiny", run.reference):
        with pytest.raises(PreflightError, match="sft: no stages/sft/"):
            resolve_model(reference, bench.base)
    assert resolve_model("tiny", bench.base, prefer=("pretrain", "sft")).parts[-4] == "pretrain"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no run or model `.*` here; .*runs under .*base"),
        (lambda folder: folder.write_text("name: tiny"), "a run has the `name` that is in its recipe, not that of"),
        (lambda folder: folder.mkdir(), "is neither the folder of a run .* nor that of a model"),
        (lambda folder: (folder.mkdir(), (folder / "run.json").write_text("{")), "run.json cannot be read"),
    ],
)
def test_a_folder_that_is_no_run_gets_the_right_reason(bench, tmp_path, make, message):
    bench.run(last="tokenizer")
    make(tmp_path / "thing")
    with pytest.raises(RecipeError, match=message):
        find_run(str(tmp_path / "thing"), bench.base)


def test_comparison_with_an_archived_run_compares_their_recipes_and_names_what_is_missing(archived, bench):
    """Of the archived run there is its recipe, but no result and no digest of its data."""
    other = bench.run("sft.horizon.steps=5")
    table = render_comparison(compare_runs([find_run(str(archived), bench.base), other], bench.base))
    assert "| sft.horizon.steps | 4 | 5 |" in table
    assert "| chat_eval.spelling | missing | 0.75 ± 0.12 (n 12) |" in table
    assert "Missing: results of the run" in table and f"searched in {bench.base}" in table
    assert "do not differ in any" not in table


def test_comparison_never_claims_equality_that_it_cannot_know(archived, bench):
    same = bench.run()
    run = find_run(str(archived), bench.base)
    table = render_comparison(compare_runs([run, same], bench.base))
    assert "do not differ" not in table or "Missing" not in table
    shutil.rmtree(bench.base)
    table = render_comparison(compare_runs([run, run], bench.base))
    assert "do not differ in any field that affects results" in table and table.count("Missing") == 1
    run.folder.resolved.unlink()
    table = render_comparison(compare_runs([run, run], bench.base))
    assert "do not differ" not in table and "compared only in part" in table


def test_a_copied_base_folder_works_under_another_path_and_host_name(bench, tmp_path, monkeypatch, capsys):
    """A run that was in progress when it was copied is not in progress in the copy. Nothing is computed again."""
    run = bench.run()
    run.state.model_copy(update={"status": "running", "host": "old"}).write(run.folder.state)
    bench.calls()
    copy = tmp_path / "elsewhere" / "base"
    copy.parent.mkdir()
    subprocess.run(["cp", "-r", bench.base, copy], check=True)
    shutil.rmtree(bench.base)
    bench.base = copy
    use(monkeypatch, copy)
    monkeypatch.setattr("platform.node", lambda: "new")
    assert command.main(["ls"]) == 0
    assert "died" in capsys.readouterr().out
    again = bench.run()
    assert bench.calls() == [] and "nothing to do" in bench.display.text
    assert again.folder.path == copy / "runs" / run.reference
    assert command.main(["report", "tiny"]) == 0
    assert "| chat_eval | spelling | 0.75 |" in capsys.readouterr().out
    assert command.main(["compare", "tiny", "tiny"]) == 0
    assert "do not differ in anything" in capsys.readouterr().out
    assert resolve_model("tiny", copy).is_relative_to(copy)
