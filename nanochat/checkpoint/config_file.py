"""Reads the configuration of a model folder, which may come from anywhere.

This needs no MLX, so that the checks before a run can read it too.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from nanochat.errors import PreflightError
from nanochat.model.config import GPTConfig
from nanochat.storage.given_json import read_object
from nanochat.storage.layout import CONFIG_FILE

FORMAT = 1
_OPTIONAL = {"norm_eps", "architecture"}
"""Fields whose default is right if a file lacks them, or does not fit the weights."""


def load_config(folder: Path) -> GPTConfig:
    """Return a model folder's configuration. A PreflightError says why there is none that is valid."""
    path = folder / CONFIG_FILE
    if not path.exists():
        raise PreflightError(f"{folder} holds no model: {CONFIG_FILE} is missing")
    content = read_object(path)
    if "model_type" in content:
        kind = content["model_type"]
        remedy = (
            "make a folder of ours from it with `nanochat-run import`"
            if kind == "nanochat"
            else "if `nanochat-run export` wrote it, name the run or folder that it was made from, or import its "
            "`--format torch`"
        )
        raise PreflightError(f"{folder} is a model for other programs (of type {kind!r}); {remedy}")
    if content.get("format") != FORMAT:
        raise PreflightError(f"{path} has format {content.get('format')!r}; this version reads {FORMAT}")
    config = config_from(content.get("model"), path)
    if missing := {field.name for field in fields(config)} - content["model"].keys() - _OPTIONAL:
        raise PreflightError(f"{path} lacks {', '.join(sorted(missing))}; restore it from a copy")
    return config


def config_from(values: object, path: Path) -> GPTConfig:
    """Return the configuration with values that were read from `path`. A PreflightError says which one is wrong."""
    try:
        if not isinstance(values, dict):
            raise TypeError(f"a model's sizes are an object, not {values!r}")
        config = GPTConfig.from_dict(values)
    except TypeError as error:
        raise PreflightError(
            f"{path} does not describe a nanochat model: {error}; correct it, or use a different model"
        ) from None
    if problems := config.problems():
        raise PreflightError(f"{path} does not describe a valid model: {'; '.join(problems)}")
    return config
