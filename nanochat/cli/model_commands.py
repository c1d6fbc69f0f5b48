"""The verbs that carry weights between PyTorch nanochat and model folders of ours: import and export."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.model.config import GPTConfig
from nanochat.storage.files import write_text
from nanochat.storage.layout import TOKENIZER_FILE


def import_model(options: argparse.Namespace) -> None:
    """Write a model folder from a file of PyTorch nanochat's weights, its configuration and a tokenizer.

    Raises:
        PreflightError: a file is missing, or they do not fit each other.
        StageError: the weights are not those of the configuration.
    """
    if options.folder.exists():
        raise PreflightError(f"{options.folder} exists: name a folder that does not")
    config = read_config(options.config or _beside(options.weights), architecture=options.architecture)
    runtime.prepare(device="cpu")
    from nanochat.checkpoint import load_tokenizer, save_model
    from nanochat.model.gpt import GPT
    from nanochat.model.torch_weights import read_torch_weights

    given: Path = options.tokenizer
    if not given.is_dir() and given.name != TOKENIZER_FILE:
        raise PreflightError(f"{given}: name a {TOKENIZER_FILE} or the folder that holds it; no other kind can be read")
    tokenizer = load_tokenizer(given if given.is_dir() else given.parent)
    if tokenizer.vocab_size > config.vocab_size:
        raise PreflightError(
            f"{given} has {tokenizer.vocab_size} tokens, and the model knows {config.vocab_size}: it is another one's"
        )
    model = GPT(config)
    model.set_parameters(read_torch_weights(options.weights, config))
    save_model(options.folder, model, tokenizer)
    print(f"{options.folder}: {config.num_parameters():,} parameters")
    print(f"evaluate it: nanochat-run recipes/eval_only.yaml --set base_eval.init_from={options.folder}")


def export_model(options: argparse.Namespace) -> None:
    """Write a model of ours as a safetensors file of PyTorch nanochat's names, and its configuration beside it.

    Raises:
        RecipeError: there is no such model.
        PreflightError: the file exists.
    """
    weights: Path = options.weights
    if weights.suffix != ".safetensors":
        raise PreflightError(f"{weights}: weights are written as safetensors, so name a file that ends in .safetensors")
    if weights.exists():
        raise PreflightError(f"{weights} exists: name a file that does not")
    runtime.prepare(device="cpu")
    from nanochat.checkpoint import load_model
    from nanochat.model.torch_weights import export_weights
    from nanochat.runner.store.runs import resolve_model

    model = load_model(resolve_model(options.model, runtime.base_dir()))
    export_weights(model.named_parameters(), weights)
    described = weights.with_suffix(".json")
    write_text(described, json.dumps({"model_config": model.config.to_dict()}, indent=1) + "\n")
    print(f"{weights}, {described}")


def read_config(path: Path, *, architecture: str | None = None) -> GPTConfig:
    """Return the configuration in a JSON file: PyTorch nanochat's `meta_STEP.json`, or a model folder's config.json.

    Args:
        architecture: stands in for what the file does not say; PyTorch nanochat's do not. Default: the seed's.

    Raises:
        PreflightError: it is missing or describes no possible model.
    """
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        values = described.get("model_config") or described.get("model") or described
        named = {"architecture": architecture} if architecture is not None else {}
        config = GPTConfig.from_dict({**named, **values})
        problems = config.problems()
    except FileNotFoundError:
        raise PreflightError(f"{path}: no such file; say `--config FILE`, the meta_*.json beside the weights") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise PreflightError(f"{path} does not describe a nanochat model: {error}") from None
    if problems:
        raise PreflightError(f"{path} does not describe a possible model: {'; '.join(problems)}")
    return config


def _beside(weights: Path) -> Path:
    """Return where PyTorch nanochat keeps the configuration of `model_STEP.pt`, or `export` that of a file."""
    meta = weights.with_name(weights.name.replace("model_", "meta_", 1)).with_suffix(".json")
    return meta if meta.is_file() else weights.with_suffix(".json")
