"""Weights and training state on disk: whole, verified and durable, or not there at all."""

from nanochat.checkpoint.model_folder import (
    load_config,
    load_model,
    load_tokenizer,
    save_model,
    write_model_files,
)
from nanochat.checkpoint.snapshots import CheckpointView, latest_checkpoint, list_checkpoints, save_checkpoint

__all__ = [
    "CheckpointView",
    "latest_checkpoint",
    "list_checkpoints",
    "load_config",
    "load_model",
    "load_tokenizer",
    "save_checkpoint",
    "save_model",
    "write_model_files",
]
