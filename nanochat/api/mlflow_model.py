"""Loads a model that was logged to MLflow: `mlflow.pyfunc.load_model` calls `_load_pyfunc` of this module.

Its files were uploaded, or they are where the stage wrote them. Their content is compared in either case. Not here:
MLflow, which is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

from nanochat import runtime
from nanochat.api.models import Messages, Model, load
from nanochat.errors import PreflightError, RecipeError
from nanochat.storage.files import sha256_of_file
from nanochat.storage.layout import MODEL_FOLDER, WEIGHTS_FILE, StageFolder

_PROMPT_COLUMNS = ("messages", "prompt")


class LoggedModel:
    """A model with the `predict` that MLflow calls.

    Arrays of MLX belong to the thread that made them, and MLflow's server calls from many. So one thread of this object
    loads the model and answers, one call after another.
    """

    def __init__(self, load_model: Callable[[], Model], *, is_chat: bool) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="logged-model")
        self._model, self._is_chat = self._thread.submit(load_model).result(), is_chat

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Return an answer to each prompt or conversation.

        Args:
            model_input: a prompt, a list of prompts, a conversation as `[{"role": "user", "content": ...}, ...]`, a
                list of conversations, `{"messages": ...}` or `{"prompt": ...}` with one of these, or a table with a
                column of that name, or with one column.
            params: `temperature`, `max_tokens` and `seed`, and more arguments of `nanochat.Model.chat`.

        Raises:
            RecipeError: it is none of these, a setting is wrong, or a base model gets a conversation.
        """
        prompts = _prompts(model_input)
        if not self._is_chat and not all(isinstance(prompt, str) for prompt in prompts):
            raise RecipeError("this is a base model, which continues texts: give prompts instead of messages")
        return self._thread.submit(self._answer, prompts, params or {}).result()

    def _answer(self, prompts: Sequence[str | Messages], params: Mapping[str, Any]) -> list[str]:
        answer = self._model.chat if self._is_chat else self._model.complete
        return [answer(cast(str, prompt), **params) for prompt in prompts]


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> LoggedModel:
    """Return the model of an MLmodel file in the folder `path`, with the configuration that is written there."""
    folder = _find_folder(Path(path), model_config)
    for name, expected in model_config["sha256"].items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != expected:
            raise PreflightError(f"{folder / name} is not the file that was logged to MLflow: it was lost or changed")
    device = cast(Literal["auto", "cpu", "gpu"], model_config.get("device", "auto"))
    return LoggedModel(lambda: load(folder, device=device), is_chat=bool(model_config["is_chat"]))


def _find_folder(path: Path, model_config: Mapping[str, Any]) -> Path:
    logged, stage = Path(model_config["folder"]), runtime.base_dir() / model_config["stage"]
    places = [path / MODEL_FOLDER, logged, StageFolder(stage).model]
    for place in places:
        if (place / WEIGHTS_FILE).is_file():
            return place
    raise PreflightError(
        f"the weights of this model were not uploaded to MLflow, and are not in {logged} or under {stage}; set "
        "NANOCHAT_BASE_DIR to the base folder with that stage, or run its recipe with `tracking.upload_weights: all`"
    )


def _prompts(given: Any) -> Sequence[str | Messages]:
    """Return the prompts and conversations of an input in any of the forms of `predict`."""
    if hasattr(given, "iterrows"):  # a data frame
        rows = given.to_dict(orient="records")
        return [prompt for row in rows for prompt in _prompts(row)]
    if hasattr(given, "tolist"):  # an array, or a column of a data frame
        given = given.tolist()
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping) and "role" not in given:
        column = next((name for name in _PROMPT_COLUMNS if name in given), None)
        if column is None and len(given) == 1:
            (column,) = given
        if column is not None:
            return _prompts(given[column])
    if isinstance(given, Sequence) and given:
        if all(isinstance(x, str) for x in given):
            return given
        if all(isinstance(x, Mapping) and "role" in x for x in given):
            return [given]
        return [prompt for x in given for prompt in _prompts(x)]
    raise RecipeError(f"give a prompt, a list of prompts, or messages with `role` and `content`, not {given!r}")
