"""Saves and loads model folders: config.json, model.safetensors and tokenizer.model.

The weights have the names of PyTorch nanochat (see `model.gpt`). A checkpoint is a model folder with more files in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx

from nanochat.checkpoint.arrays import write_arrays
from nanochat.errors import PreflightError, StageError
from nanochat.model import gpt
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.storage.files import new_folder, write_text
from nanochat.storage.layout import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from nanochat.tokenizer.bpe import Tokenizer

FORMAT = 1


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


def load_config(folder: Path) -> GPTConfig:
    """Return a model folder's configuration. A damaged one, or one of another format, raises a StageError."""
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PreflightError(f"{folder} holds no model: {CONFIG_FILE} is missing") from None
    except ValueError as error:
        raise StageError(f"{path} is not JSON: {error}") from None
    try:
        if content["format"] != FORMAT:
            raise StageError(f"{path} has format {content['format']}; this version reads {FORMAT}")
        return GPTConfig.from_dict(content["model"])
    except (KeyError, TypeError) as error:
        raise StageError(f"{path} does not describe a model of ours: {error}") from None


def load_model(folder: Path, dtype: mx.Dtype | None = None) -> FastGPT:
    """Return the model in a folder. With a `dtype` it stores its matrices and computes in that dtype, for inference.

    Raises:
        PreflightError: the folder does not contain a model.
        StageError: the config does not fit the weights, or one of them cannot be read.
    """
    model = FastGPT(load_config(folder))
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise PreflightError(f"{folder} holds no model: {WEIGHTS_FILE} is missing")
    try:
        gpt.load_weights(model, path)
        mx.eval(model.named_parameters())
    except StageError as error:
        raise StageError(f"{path} and its {CONFIG_FILE} do not fit: {error}") from error
    except RuntimeError as error:  # MLX has no special exception for unreadable files
        raise StageError(f"{path} cannot be read: {error}") from error
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
