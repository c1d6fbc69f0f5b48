"""The verb `export` of `nanochat-run`, which writes a model as a folder for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from nanochat import runtime
from nanochat.cli.verbs.model_commands import check_new_folder
from nanochat.errors import RecipeError
from nanochat.storage.files import new_folder


def export_model(options: argparse.Namespace) -> None:
    """Write a model as a folder for mlx-lm, transformers or PyTorch nanochat."""
    folder: Path = options.folder
    check_new_folder(folder)
    if options.quantize_bits is not None and options.format != "mlx":
        raise RecipeError(f"--quantize-bits goes with --format mlx only, not {options.format}")
    runtime.prepare(device="cpu")
    from nanochat.checkpoint.model_folder import load_model_and_tokenizer
    from nanochat.export.folder import write_export
    from nanochat.export.weights import Quantization
    from nanochat.runner.report.origin import origin_of_model
    from nanochat.runner.store.verification import find_model

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
