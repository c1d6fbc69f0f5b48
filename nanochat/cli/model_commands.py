"""The verb `import` of `nanochat-run`, which converts models of PyTorch nanochat."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

import nanochat
from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.model.config import GPTConfig
from nanochat.recipe.merge.variables import escape
from nanochat.storage.files import new_folder
from nanochat.storage.integrity import write_manifest


def import_model(options: argparse.Namespace) -> None:
    """Write a model folder from a file of PyTorch nanochat weights, a configuration and a tokenizer."""
    if options.folder.exists():
        raise PreflightError(f"{options.folder} already exists; name a new folder")
    config = read_config(options.config or _config_next_to(options.weights), architecture=options.architecture)
    runtime.prepare(device="cpu")
    from nanochat.checkpoint.model_folder import FORMAT, write_model_files
    from nanochat.model.gpt import GPT
    from nanochat.model.torch_weights import read_torch_weights
    from nanochat.tokenizer.bpe import Tokenizer

    path: Path = options.tokenizer
    if not path.exists():
        raise PreflightError(f"{path}: no such file; name the tokenizer's file, or the folder that contains it")
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise PreflightError(
            f"{path} has {tokenizer.vocab_size} tokens but the model has {config.vocab_size}: this tokenizer belongs to"
            " a different model"
        )
    model = GPT(config)
    model.set_parameters(read_torch_weights(options.weights, config))
    with new_folder(options.folder) as scratch:
        write_model_files(scratch, model, tokenizer)
        write_manifest(scratch, file_format=FORMAT)
    print(f"{options.folder}: {config.num_parameters():,} parameters")
    model_folder = options.folder.absolute()
    print(f"to talk to it: {shlex.join(['nanochat-chat', str(model_folder)])}")
    print(f"to evaluate it: {_evaluation_command(model_folder)}")


def read_config(path: Path, *, architecture: str | None = None) -> GPTConfig:
    """Return the configuration in a JSON file: PyTorch nanochat's `meta_STEP.json`, or config.json of a model folder.

    `architecture` is used if the file does not name one, as files of PyTorch nanochat do not. Default: `seed`. A
    PreflightError says that the file is missing or does not describe a valid model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = content.get("model_config") or content.get("model") or content
        named = {"architecture": architecture} if architecture is not None else {}
        config = GPTConfig.from_dict({**named, **values})
        problems = config.problems()
    except FileNotFoundError:
        remedy = "give the configuration (meta_*.json) with `--config FILE`"
        raise PreflightError(f"there is no file {path}; {remedy}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise PreflightError(f"{path} does not describe a nanochat model: {error}") from None
    if problems:
        raise PreflightError(f"{path} does not describe a valid model: {'; '.join(problems)}")
    return config


def _evaluation_command(model: Path) -> str:
    """Return, for a shell in the working directory, the command that evaluates a model folder."""
    recipe = Path("recipes", "eval_only.yaml")
    if not recipe.is_file():
        recipe = Path(nanochat.__file__).parents[1] / recipe
    folder = escape(str(model))
    value = folder if re.fullmatch(r"[\w./-]*[^\W\d][\w./-]*", folder) else json.dumps(folder, ensure_ascii=False)
    flags = (word for stage in ("base_eval", "chat_eval") for word in ("--set", f"{stage}.init_from={value}"))
    return shlex.join(["nanochat-run", str(recipe), *flags])


def _config_next_to(weights: Path) -> Path:
    """Return the configuration file that PyTorch nanochat or `export` writes next to a file of weights."""
    meta = weights.with_name(weights.name.replace("model_", "meta_", 1)).with_suffix(".json")
    return meta if meta.is_file() else weights.with_suffix(".json")
