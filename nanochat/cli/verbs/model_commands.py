"""The verbs `import` and `export` of `nanochat-run`: convert models of other programs to model folders, and back."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError, RecipeError
from nanochat.recipe.merge.variables import escape
from nanochat.storage.files import new_folder
from nanochat.storage.integrity import write_manifest


def import_model(options: argparse.Namespace) -> None:
    """Write a model folder from the model of another program, which is recognised by its files."""
    _check_new_folder(options.folder)
    runtime.prepare(device="cpu")
    from nanochat.checkpoint.config_file import FORMAT
    from nanochat.checkpoint.foreign.model import read_model
    from nanochat.checkpoint.foreign.model_parts import find_parts, read_tokenizer
    from nanochat.checkpoint.model_folder import require_rows, write_model_files
    from nanochat.model.gpt import GPT

    parts = find_parts(options.model, config=options.config, tokenizer=options.tokenizer)
    tokenizer = read_tokenizer(parts.tokenizer)
    config, parameters = read_model(parts, architecture=options.architecture)
    require_rows(tokenizer, parts.tokenizer, config)
    model = GPT(config)
    model.set_parameters(parameters)
    with new_folder(options.folder) as scratch:
        write_model_files(scratch, model, tokenizer)
        write_manifest(scratch, file_format=FORMAT)
    print(f"{options.folder}: {config.num_parameters():,} parameters, {config.architecture}, {parts.tokenizer.name}")
    model_folder = options.folder.absolute()
    print(f"to talk to it: {shlex.join(['nanochat-chat', str(model_folder)])}")
    print(f"to evaluate it: {_evaluation_command(model_folder)}")


def _check_new_folder(folder: Path) -> None:
    """Raise a PreflightError if a folder cannot be created at a path, because something else is there or above."""
    if os.path.lexists(folder):
        raise PreflightError(f"{folder} already exists; name a new folder")
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise PreflightError(f"{folder} cannot be created, since {above} is not a folder; name another one")


def _evaluation_command(model: Path) -> str:
    """Return, for a shell in the working directory, the command that evaluates a model folder."""
    folder = escape(str(model))
    value = folder if re.fullmatch(r"[\w./-]*[^\W\d][\w./-]*", folder) else json.dumps(folder, ensure_ascii=False)
    flags = (word for stage in ("base_eval", "chat_eval") for word in ("--set", f"{stage}.init_from={value}"))
    return shlex.join(["nanochat-run", "eval_only", *flags])


def export_model(options: argparse.Namespace) -> None:
    """Write a model as a folder for mlx-lm, transformers or PyTorch nanochat."""
    folder: Path = options.folder
    _check_new_folder(folder)
    if options.quantize_bits is not None and options.format != "mlx":
        raise RecipeError(f"--quantize-bits goes with --format mlx only, not {options.format}")
    runtime.prepare(device="cpu")
    from nanochat.checkpoint.model_folder import load_model_and_tokenizer
    from nanochat.export.folder import write_export
    from nanochat.export.weights import Quantization
    from nanochat.runner.report.model_origin import origin_of_model
    from nanochat.runner.store.run_catalog import find_model

    base = runtime.base_dir()
    model_folder = find_model(options.model, base)
    quantization = None
    if options.quantize_bits is not None:
        quantization = Quantization(bits=options.quantize_bits, group_size=options.group_size)
    model, tokenizer = load_model_and_tokenizer(model_folder)
    origin = origin_of_model(model_folder, options.model, base)
    with new_folder(folder) as scratch:
        write_export(scratch, model, tokenizer, options.format, quantization=quantization, origin=origin)
    print(f"wrote {folder}; its README.md says how to use it")
