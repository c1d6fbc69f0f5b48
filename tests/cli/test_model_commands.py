"""`nanochat-run import` converts models of PyTorch nanochat, and `export` converts them back."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nanochat.checkpoint.model_folder import load_model, load_tokenizer
from nanochat.cli.chat import main as main_of_chat
from nanochat.cli.run import main
from nanochat.errors import OK, PreflightError
from nanochat.model.config import GPTConfig
from nanochat.tokenizer import bpe

SHAPE = {"sequence_len": 32, "vocab_size": 300, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 32}


@pytest.fixture
def given(tmp_path) -> Path:
    """A folder as PyTorch nanochat writes it (compiled, not padded, all weights random), and a tokenizer."""
    generator = np.random.default_rng(0)
    shapes = GPTConfig.from_dict({**SHAPE, "architecture": "current"}).parameter_shapes()
    weights = {
        f"_orig_mod.{name}": generator.normal(size=(300, *shape[1:]) if shape[0] == 320 else shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, str(tmp_path / "model_000012.safetensors"))
    (tmp_path / "meta_000012.json").write_text(json.dumps({"step": 12, "model_config": SHAPE}))
    bpe.train(["the cat sat on the mat"], vocab_size=280, max_chars=99, max_document_chars=99).save(tmp_path)
    return tmp_path


def command(folder: Path, *more: str, model: str = "mine") -> list[str]:
    weights, model, tokenizer = (str(folder / name) for name in ("model_000012.safetensors", model, "tokenizer.model"))
    return ["import", weights, model, "--tokenizer", tokenizer, "--architecture", "current", *more]


def test_import_and_export_preserve_every_weight(given, capsys):
    """The configuration comes from the meta file next to the weights."""
    assert main(command(given)) == OK
    model = load_model(given / "mine")
    assert model.config == GPTConfig.from_dict({**SHAPE, "architecture": "current"})
    assert load_tokenizer(given / "mine").encode("cat") == load_tokenizer(given).encode("cat")
    assert main(["export", str(given / "mine"), str(given / "back"), "--format", "torch"]) == OK
    back = given / "back" / "model.safetensors"
    before, after = load_file(given / "model_000012.safetensors"), load_file(back)
    assert {name.removeprefix("_orig_mod.") for name in before} == after.keys()
    for name, value in before.items():
        exported = after[name.removeprefix("_orig_mod.")]
        assert np.array_equal(exported[: len(value)], value)
        assert not exported[len(value) :].any()
    assert main(["import", str(back), str(given / "again"), "--tokenizer", str(given)]) == OK
    renamed = (given / "tokenizer.model").rename(given / "my_tok.model")
    assert main(["import", str(back), str(given / "third"), "--tokenizer", str(renamed)]) == OK
    assert load_tokenizer(given / "third").encode("cat") == load_tokenizer(given / "again").encode("cat")
    idx = mx.array([[1, 5, 250, 299]])
    assert mx.array_equal(load_model(given / "again")(idx), model(idx))
    assert f"{given / 'mine'}: {model.config.num_parameters():,} parameters" in capsys.readouterr().out


def import_and_read_commands(given: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    """Import a model into a folder whose name means something to shells, YAML and recipes; return what is printed."""
    assert main(command(given, model="a b #1: ${x}'s")) == OK
    _, chat, evaluation = capsys.readouterr().out.splitlines()
    return shlex.split(chat.removeprefix("to talk to it: ")), shlex.split(evaluation.removeprefix("to evaluate it: "))


def test_commands_that_import_prints_name_the_model(given, capsys, monkeypatch):
    """Both stages of the evaluation start from the model, and the command works in any working directory."""
    monkeypatch.chdir(given)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(given / "base"))
    chat, evaluation = import_and_read_commands(given, capsys)
    assert (chat[0], evaluation[0]) == ("nanochat-chat", "nanochat-run")
    assert main(["plan", *evaluation[1:]]) == OK
    plan = capsys.readouterr().out
    assert plan.count(f"starts from {chat[1]}\n") == 2
    assert "missing inputs" not in plan
    assert main_of_chat([*chat[1:], "--prompt", "hi", "--max-tokens", "2", "--device", "cpu"]) == OK


@pytest.mark.slow
def test_evaluation_that_import_prints_runs(given, capsys, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(given / "base"))
    _, evaluation = import_and_read_commands(given, capsys)
    smaller = ("base_eval.suites.bpb.tokens=64", "tracking.kind=none", "run.device=cpu")
    smaller += tuple(f"chat_eval.suites.{name}.max_problems=2" for name in ("simple_spelling", "spelling_bee"))
    assert main([*evaluation[1:], *(word for change in smaller for word in ("--set", change))]) == OK
    assert "2-chat_eval: done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("mine", "", PreflightError, "exists"),
        ("meta_000012.json", None, PreflightError, "--config FILE"),
        ("meta_000012.json", "{", PreflightError, "is not JSON"),
        ("meta_000012.json", json.dumps(SHAPE | {"n_head": 3}), PreflightError, "valid model"),
        ("meta_000012.json", json.dumps(SHAPE | {"n_embd": 64}), PreflightError, "has shape"),
        ("meta_000012.json", json.dumps(SHAPE | {"vocab_size": 260}), PreflightError, "tokens"),
        ("tokenizer.model", None, PreflightError, "tokenizer.model: no such file"),
        ("model_000012.safetensors", None, PreflightError, "no such file or folder"),
    ],
)
def test_import_of_files_that_do_not_belong_together_is_refused(given, capsys, name, content, code, words):
    """A file is missing (None) or has other content; nothing is written."""
    if content is None:
        (given / name).unlink()
    else:
        (given / name).write_text(content)
    assert main(command(given)) == code.exit_code
    assert words in capsys.readouterr().err
    assert not (given / "mine").is_dir()


def test_damaged_copy_of_an_imported_model_is_refused(given, capsys):
    """Its size and time are as they were."""
    assert main(command(given)) == 0
    weights = given / "mine" / "model.safetensors"
    status, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main(["export", str(given / "mine"), str(given / "new"), "--format", "mlx"]) == PreflightError.exit_code
    assert f"{weights} has changed since it was written; restore it" in capsys.readouterr().err
    assert not (given / "new").exists()
