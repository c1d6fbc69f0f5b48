"""Tests that no damaged file of a finished stage is used: the stage is computed again, or the command refuses."""

from __future__ import annotations

import itertools
import os
import re
import shutil

import pytest

from nanochat.errors import PreflightError, RecipeError
from nanochat.runner.inspection.source_inputs import existing_tokenizer
from nanochat.runner.report.run_report import write_report
from nanochat.runner.store.record import describe_files, read_record
from nanochat.runner.store.run_catalog import resolve_model
from nanochat.runner.store.verification import check_model
from nanochat.runner.upload.build_view import run_view
from nanochat.storage.integrity import write_manifest
from nanochat.storage.layout import StageFolder
from nanochat.tokenizer import bpe


def flip(path, other=None):
    """Change one byte, but neither size nor time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_now(path, other=None):
    flip(path)
    os.utime(path)


def truncate(path, other):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "flipped": flip_now,
    "truncated": truncate,
    "removed": lambda path, other: path.unlink(),
    "swapped": lambda path, other: shutil.copy(other, path),
}


def test_damaged_file_of_a_stage_is_named_and_the_stage_alone_is_computed_again(bench):
    """All files of all stages are damaged in `tests/torture/damage.py`."""
    bench.run("seed=2", "name=other", last="pretrain")
    other = bench.stage_folder("pretrain").path
    bench.run(last="pretrain")
    (folder,) = (StageFolder(path) for path in other.parent.iterdir() if path != other)
    before = read_record(folder)
    bench.calls()
    for damage, name in itertools.product(DAMAGES, ("record.json", "out/model/model.safetensors")):
        DAMAGES[damage](folder.path / name, other / name)
        lookup = {x.stage.name: x for x in bench.prepare().look_up_cache()}["pretrain"]
        assert (lookup.action, name in lookup.reason) == ("run", True), (damage, lookup.reason)
        bench.run(last="pretrain")
        assert bench.calls() == ["pretrain"]
        assert "2-pretrain: runs, " in bench.display.text and name in bench.display.text
        after = read_record(folder)
        assert (after.output_files, after.metrics) == (before.output_files, before.metrics)


def test_file_with_right_size_and_time_is_compared_before_a_later_stage_loads_it(bench):
    """Looking at the cache does not read it, so that planning is fast."""
    bench.run(last="pretrain")
    bench.calls()
    flip(bench.stage_folder("pretrain").model / "model.safetensors")
    bench.run(last="pretrain")
    assert bench.calls() == []
    bench.run(last="base_eval")
    assert bench.calls() == ["pretrain", "base_eval"]
    assert "2-pretrain: runs, damaged: out/model/model.safetensors has changed" in bench.display.text


@pytest.mark.parametrize(("damage", "error"), [(flip, PreflightError), (flip_now, RecipeError)])
def test_damaged_stage_that_is_not_selected_is_refused(bench, damage, error):
    """The plan finds a changed time. The content alone is compared when the selected stage would load it."""
    bench.run(last="pretrain")
    bench.calls()
    damage(bench.stage_folder("pretrain").model / "model.safetensors", None)
    with pytest.raises(error, match="--from pretrain"):
        bench.run(only="sft")
    assert bench.calls() == []


def test_copied_base_folder_is_read_once_and_then_trusted(bench):
    """A copy has new times. They are set to the recorded ones once the content is known to be right."""
    bench.run(last="pretrain")
    bench.calls()
    weights = bench.stage_folder("pretrain").model / "model.safetensors"
    before = weights.stat().st_mtime_ns
    os.utime(weights)
    bench.run(last="pretrain")
    assert bench.calls() == []
    assert weights.stat().st_mtime_ns == before


def test_damaged_model_is_refused_before_it_is_loaded(bench):
    """This is what chat, export and `init_from` do. A copy without a record is taken as it is."""
    bench.run("seed=2", "name=other", last="pretrain")
    bench.run(last="pretrain")
    bench.calls()
    model, other = (resolve_model(name, bench.base) for name in ("tiny", "other"))
    weights, kept = model / "model.safetensors", bench.folder / "kept"
    shutil.copy2(weights, kept)
    for name, damage in {"flipped, same time": flip, **DAMAGES}.items():
        shutil.copy2(kept, weights)
        check_model(model)
        damage(weights, other / "model.safetensors")
        with pytest.raises(PreflightError, match=re.escape(f"{weights} ") + ".*run its recipe"):
            check_model(model)
        start = ("tokenizer=null", "model=null", "pretrain=null", "base_eval=null", "chat_eval=null", "name=tuned")
        with pytest.raises(
            PreflightError, match=r"model.safetensors .*run its recipe again, which computes pretrain again"
        ):
            bench.run(*start, f"sft.init_from={model}", "sft.tokens_per_step=64")
        assert bench.calls() == [] and not (bench.base / "stages" / "sft").exists()
        if weights.exists():
            check_model(shutil.copytree(model, bench.folder / name))


def test_report_and_upload_leave_out_and_name_what_is_damaged(bench):
    run = bench.run(last="pretrain")
    folder = bench.stage_folder("pretrain")
    assert "## Samples" in write_report(run, bench.base).read_text()
    before = run_view(run.folder, bench.base).stages[1]
    assert folder.metrics in before.streams and folder.samples in [x.path for x in before.artifacts]
    flip_now(folder.samples)
    flip_now(folder.metrics)
    report = write_report(run, bench.base).read_text()
    assert "## Samples" not in report
    for path in (folder.samples, folder.metrics):
        assert f"{path.name} has changed since it was written, so it is not shown. Run the recipe again." in report
    after = run_view(run.folder, bench.base).stages[1]
    assert after.streams == tuple(path for path in before.streams if path != folder.metrics)
    assert after.artifacts == tuple(x for x in before.artifacts if x.path != folder.samples)


def test_damaged_tokenizer_is_not_used_to_count_tokens(bench):
    bench.run(last="tokenizer")
    folder = bench.stage_folder("tokenizer")
    path = folder.out / "tokenizer.model"
    bpe.train(["hello world"], vocab_size=280, max_chars=99, max_document_chars=99).save(folder.out)
    read_record(folder).model_copy(update={"files": describe_files(folder)}).write(folder.record)
    flip(path)
    with pytest.raises(PreflightError, match=r"tokenizer.model has changed since it was written; run the recipe"):
        existing_tokenizer(bench.prepare())


def test_model_of_a_stage_without_a_readable_record_is_refused(bench):
    bench.run(last="pretrain")
    folder = bench.stage_folder("pretrain")
    flip(folder.record)
    with pytest.raises(PreflightError, match=r"record.json is damaged; run its recipe again"):
        check_model(folder.model)
    folder.record.unlink()
    with pytest.raises(PreflightError, match=r"record.json is missing, so the stage is not finished"):
        check_model(folder.model)


def test_copy_of_a_stage_under_a_name_of_its_own_is_compared_with_its_record(bench):
    """People copy the folder to keep the model."""
    bench.run(last="pretrain")
    copy = StageFolder(shutil.copytree(bench.stage_folder("pretrain").path, bench.folder / "my model"))
    check_model(copy.model)
    flip(copy.model / "config.json")
    with pytest.raises(PreflightError, match=r"config.json has changed since it was written; run its recipe again"):
        check_model(copy.model)


def test_model_folder_with_a_manifest_is_compared_with_it(tmp_path):
    """Checkpoints and imported models have one."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(f"content of {name}")
    write_manifest(tmp_path, file_format=1)
    check_model(tmp_path)
    flip(tmp_path / "model.safetensors")
    with pytest.raises(PreflightError, match=r"model.safetensors has changed since it was written; restore it"):
        check_model(tmp_path)
    flip(tmp_path / "manifest.json")
    with pytest.raises(PreflightError, match=r"manifest.json is damaged; restore it"):
        check_model(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "files": {}}')  # of an earlier version
    check_model(tmp_path)
