"""Writes the small files that make a model folder loadable by `mlflow.pyfunc`: MLmodel, requirements and an example.

They name the model's files and their digests. The files themselves may lie beside them, or stay where they are. Not
here: loading (`api.mlflow_model`).
"""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import yaml

from nanochat import __version__
from nanochat.inference.chat_settings import ChatSettings
from nanochat.storage.files import write_text
from nanochat.tracking.run_view import ModelView

LOADER = "nanochat.api.mlflow_model"
"""The module that loads the model. MLflow calls its `_load_pyfunc`."""
_EXAMPLE, _SERVING_EXAMPLE = "input_example.json", "serving_input_example.json"
_TEXT = {"type": "string", "required": True}
_MESSAGE = {"type": "object", "properties": {"role": _TEXT, "content": _TEXT}}
_CHAT_INPUT = [{"type": "array", "items": _MESSAGE, "name": "messages", "required": True}]
_PARAMS = (
    ("temperature", "double", ChatSettings.temperature),
    ("max_tokens", "long", ChatSettings.max_tokens),
    ("seed", "long", ChatSettings.seed),
)


def write_model_files(folder: Path, model: ModelView, *, model_id: str, run_id: str) -> None:
    """Write the files into an empty folder, for the logged model `model_id` of the run `run_id`."""
    import mlflow

    requirements = [f"nanochat-run=={__version__}", f"mlflow=={mlflow.__version__}"]
    example: object = {"messages": [{"role": "user", "content": "Spell the word: garden"}]}
    if not model.is_chat:
        example = ["import "]
    serving = example if model.is_chat else {"inputs": example}
    content = {
        "artifact_path": model.name,
        "flavors": {"python_function": _flavor(model)},
        # Without this MLflow turns every input into a data frame, which a list of prompts cannot be.
        "is_signature_from_type_hint": True,
        "mlflow_version": mlflow.__version__,
        "model_id": model_id,
        "model_uuid": model_id.removeprefix("m-"),
        "run_id": run_id,
        "saved_input_example_info": {
            "artifact_path": _EXAMPLE,
            "serving_input_path": _SERVING_EXAMPLE,
            "type": "json_object",
        },
        "signature": {
            "inputs": json.dumps(_CHAT_INPUT if model.is_chat else [_TEXT]),
            "outputs": json.dumps([_TEXT]),
            "params": json.dumps([{"name": n, "type": t, "default": d, "shape": None} for n, t, d in _PARAMS]),
        },
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    texts = {
        "MLmodel": yaml.safe_dump(content, sort_keys=False),
        "requirements.txt": "\n".join(requirements) + "\n",
        "python_env.yaml": yaml.safe_dump(environment),
        _EXAMPLE: json.dumps(example),
        _SERVING_EXAMPLE: json.dumps(serving),
    }
    for name, text in texts.items():
        write_text(folder / name, text, durable=False)


def _flavor(model: ModelView) -> dict[str, object]:
    return {
        "loader_module": LOADER,
        "python_version": platform.python_version(),
        "env": {"virtualenv": "python_env.yaml"},
        "config": {
            "is_chat": model.is_chat,
            "folder": str(model.folder),
            "stage": model.stage,
            "sha256": dict(model.files),
        },
    }
