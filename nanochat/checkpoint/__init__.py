"""Saves and loads models and training checkpoints. A file is complete and verified, or it counts as missing."""

from nanochat.checkpoint.model_folder import (
    load_config,
    load_model,
    load_tokenizer,
    save_model,
    write_model_files,
)
from nanochat.checkpoint.snapshots import CheckpointView, latest_checkpoint, save_checkpoint

__all__ = [
    "CheckpointView",
    "latest_checkpoint",
    "load_config",
    "load_model",
    "load_tokenizer",
    "save_checkpoint",
    "save_model",
    "write_model_files",
]
