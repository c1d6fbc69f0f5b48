"""Saves and loads model folders: config.json, model.safetensors and tokenizer.model.

The weights have the names of PyTorch nanochat (see `model.gpt`). A checkpoint is a model folder with more files in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx

from nanochat.checkpoint.arrays import write_arrays
from nanochat.checkpoint.config_file import FORMAT, load_config
from nanochat.checkpoint.safetensors_file import read_weights
from nanochat.errors import PreflightError
from nanochat.model import gpt
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.storage.files import new_folder, write_text
from nanochat.storage.layout import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from nanochat.tokenizer.bpe import Tokenizer


def save_model(folder: Path, model: gpt.GPT, tokenizer: Tokenizer | None) -> None:
    """Write a model folder; see `storage.files.new_folder`. A folder that exists is replaced."""
    with new_folder(folder) as scratch:
        write_model_files(scratch, model, tokenizer)


def write_model_files(folder: Path, model: gpt.GPT, tokenizer: Tokenizer | None) -> None:
    """Write a model's files into a folder that is part of a larger atomic write."""
    content = {"format": FORMAT, "model": model.config.to_dict()}
    write_text(folder / CONFIG_FILE, json.dumps(content, indent=1) + "\n", durable=False)
    write_arrays(folder / WEIGHTS_FILE, model.named_parameters(), durable=False)
    if tokenizer is not None:
        tokenizer.save(folder)


def load_model_and_tokenizer(folder: Path, dtype: mx.Dtype | None = None) -> tuple[FastGPT, Tokenizer]:
    """Return the model, as `load_model` does, and the tokenizer in a folder.

    Raises:
        PreflightError: a file is missing or damaged, or the files do not belong together.
    """
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    require_rows(tokenizer, folder / TOKENIZER_FILE, config)
    return load_model(folder, dtype), tokenizer


def require_rows(tokenizer: Tokenizer, path: Path, config: GPTConfig) -> None:
    """Raise a PreflightError if a tokenizer gives ids that the model has no rows for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise PreflightError(
            f"{path} has {tokenizer.vocab_size:,} tokens but the model has {config.vocab_size:,}: this tokenizer"
            " belongs to a different model; use that of this model"
        )


def load_model(folder: Path, dtype: mx.Dtype | None = None) -> FastGPT:
    """Return the model in a folder. With a `dtype` it stores its matrices and computes in that dtype, for inference.

    Raises:
        PreflightError: the folder does not contain a model, a file is damaged, or the weights are not those of the
            configuration, or not finite.
    """
    config = load_config(folder)
    weights = read_weights(
        folder / WEIGHTS_FILE, config
    )  # compared with the configuration before a model is made of it
    model = FastGPT(config)
    model.set_parameters(weights)
    if dtype is not None:
        model.set_compute_dtype(dtype)
        model.cast_matrices(dtype)
        mx.eval(model.named_parameters())
    return model


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in a model folder or in the output of the tokenizer stage."""
    if not (folder / TOKENIZER_FILE).is_file():
        raise PreflightError(f"{folder} holds no tokenizer: {TOKENIZER_FILE} is missing")
    return Tokenizer.load(folder)
