"""`nanochat-run export` writes a folder for other programs, whole or not at all."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from nanochat.checkpoint.model_folder import load_model, load_tokenizer, save_model
from nanochat.cli.run import main
from nanochat.errors import OK, PreflightError, RecipeError, StageError
from nanochat.model.gpt import GPT
from nanochat.tokenizer import bpe


def export(model: Path, folder: Path, *options: str) -> int:
    return main(["export", str(model), str(folder), *options])


@pytest.fixture(params=["seed", "current", "portable"])
def model(request, tmp_path, make_random_model) -> Path:
    """A model folder whose vocabulary is padded."""
    tokenizer = bpe.train(["the cat sat on the mat"], vocab_size=280, max_chars=99, max_document_chars=99)
    made = make_random_model(request.param, sequence_len=1024, vocab_size=tokenizer.vocab_size, make_model=GPT)
    assert made.config.padded_vocab_size > made.config.vocab_size
    save_model(tmp_path / "model", made, tokenizer)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("form", "code"),
    [("mlx", {"nanochat_mlx.py"}), ("hf", {"configuration_nanochat.py", "modeling_nanochat.py"})],
)
def test_exported_folder_has_every_file_and_code_only_if_needed(model, tmp_path, form, code):
    assert export(model, tmp_path / "out", "--format", form) == OK
    always = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    always.add("tokenizer.model")  # ours, for `import`
    is_portable = load_model(model).config.architecture == "portable"
    assert {path.name for path in (tmp_path / "out").iterdir()} == always | {"README.md"} | (
        set() if is_portable else code
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"] == "nanochat") == is_portable
    assert config["eos_token_id"] == [5, 1]
    assert ("trust" in (tmp_path / "out" / "README.md").read_text()) != is_portable


@pytest.mark.parametrize("form", ["mlx", "hf"])
def test_exported_weights_are_all_there_without_padding(model, tmp_path, form):
    assert export(model, tmp_path / "out", "--format", form) == OK
    ours, theirs = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    config = load_model(model).config
    per_token = [name for name in ours if "wte" in name or "lm_head" in name or "value_embeds" in name]
    sizes = [x[: config.vocab_size].size if name in per_token else x.size for name, x in ours.items()]
    assert sorted(sizes) == sorted(x.size for x in theirs.values())
    assert sum(float(x.sum()) for x in theirs.values()) == pytest.approx(
        sum(float(x[: config.vocab_size].sum() if name in per_token else x.sum()) for name, x in ours.items()), rel=1e-3
    )


def test_quantized_export_rounds_matrices_to_their_group(model, tmp_path):
    """MLX reads the rounded weights back to within half a step of the largest distance in a group."""
    assert export(model, tmp_path / "out", "--format", "mlx", "--quantize-bits", "4", "--group-size", "32") == OK
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    packed = mx.load(str(tmp_path / "out" / "model.safetensors"))
    names = ("weight", "scales", "biases")
    parts = (packed[f"transformer.h.0.mlp.c_fc.{name}"] for name in names)
    restored = np.array(mx.dequantize(*parts, group_size=32, bits=4))
    original = load_file(model / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    groups = original.reshape(-1, 32)
    step = (groups.max(1) - groups.min(1)) / 15
    assert (np.abs(restored - original).reshape(-1, 32).max(1) <= step).all()
    assert "rounded to 4 bits" in (tmp_path / "out" / "README.md").read_text()


def test_export_refuses_a_folder_that_exists(model_folder, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert export(model_folder, tmp_path / "there", "--format", "hf") == PreflightError.exit_code
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["import", "export"])
def test_places_where_no_folder_can_be_created_are_refused(model_folder, tmp_path, capsys, verb):
    """A link to nothing, and paths below it and below a file."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    source = {
        "import": [str(model_folder / "model.safetensors"), "--tokenizer", str(model_folder)],
        "export": [str(model_folder), "--format", "hf"],
    }
    for place in ("link", "link/new", "file/new", "file/deep/new"):
        model, *options = source[verb]
        assert main([verb, model, str(tmp_path / place), *options]) == 3
        assert re.search("already exists|not a folder", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_export_refuses_models_and_formats_that_cannot_be_quantized(tmp_path, make_random_model, capsys):
    tokenizer = bpe.train(["the cat"], vocab_size=280, max_chars=99, max_document_chars=99)
    model_folder = tmp_path / "model"
    save_model(model_folder, make_random_model("seed", n_embd=48, vocab_size=tokenizer.vocab_size), tokenizer)
    assert export(model_folder, tmp_path / "new", "--format", "hf", "--quantize-bits", "4") == RecipeError.exit_code
    assert "--format mlx only" in capsys.readouterr().err
    wide = ("--format", "mlx", "--quantize-bits", "4", "--group-size", "128")
    assert export(model_folder, tmp_path / "new", *wide) == PreflightError.exit_code
    assert "use a smaller `group_size`" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_export_to_a_full_disk_leaves_nothing_and_can_be_repeated(model_folder, tmp_path, capsys):
    """A limit on the size of files stands for the full disk."""
    target = tmp_path / "out" / "model"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        code = export(model_folder, target, "--format", "mlx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == StageError.exit_code
    assert list(target.parent.iterdir()) == []
    assert export(model_folder, target, "--format", "mlx") == OK


@pytest.mark.parametrize("form", ["mlx", "hf"])
def test_exported_portable_model_is_imported_again(tmp_path, make_random_model, form):
    """The folder has our own tokenizer beside that of the libraries, and the same logits come back."""
    tokenizer = bpe.train(["the cat sat on the mat"], vocab_size=280, max_chars=99, max_document_chars=99)
    model = make_random_model("portable", vocab_size=tokenizer.vocab_size, make_model=GPT)
    save_model(tmp_path / "model", model, tokenizer)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", form]) == OK
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back")]) == OK
    back = load_model(tmp_path / "back")
    idx = mx.array([[1, 20, 30, 40]])
    assert mx.abs(back(idx) - model(idx)).max().item() <= 1e-4
    assert load_tokenizer(tmp_path / "back").model == tokenizer.model


def test_exported_folders_are_told_from_ours(tmp_path, make_random_model, capsys):
    tokenizer = bpe.train(["the cat sat on the mat"], vocab_size=280, max_chars=99, max_document_chars=99)
    save_model(tmp_path / "model", make_random_model("seed", vocab_size=tokenizer.vocab_size), tokenizer)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "hf"]) == OK
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back")]) == 3
    assert "import its `--format torch`" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "again"), "--format", "hf"]) == 3
    problem = capsys.readouterr().err
    assert "a model for other programs" in problem
    assert "import its `--format torch`" in problem and "with `nanochat-run import`" not in problem  # which refuses it
    (tmp_path / "out/config.json").write_text('{"model_type": "nanochat"}')
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "again"), "--format", "hf"]) == 3
    assert "make a folder of ours from it with `nanochat-run import`" in capsys.readouterr().err
