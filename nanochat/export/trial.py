"""Asks an exported model questions, through the library that it was exported for, in a process of its own.

Not here: comparing the answers with ours (`stages.export`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.errors import InterruptedRun, StageError
from nanochat.export.model_config import OWN_MODEL_TYPE, Format
from nanochat.storage.files import write_text
from nanochat.storage.layout import CONFIG_FILE
from nanochat.tokenizer.chat_format import Conversation

CHECKED_FORMATS: dict[Format, tuple[str, ...]] = {"mlx": ("mlx_lm",), "hf": ("transformers", "torch")}
"""The formats that a program here can load, with the packages that it imports."""
_PROGRAMS = Path(__file__).with_name("programs")
_POLL_SECONDS = 0.1
_SHOWN_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Question:
    """A conversation whose last message is to be answered, or a text to continue."""

    prompt: Conversation | str
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The ids of the prompt as the library has it, those of the answer without the one that ended it, and its text."""

    prompt: list[int]
    tokens: list[int]
    text: str


def missing_packages(form: Format) -> list[str]:
    """Return which packages are not installed that a trial of the format needs."""
    return [name for name in CHECKED_FORMATS.get(form, ()) if importlib.util.find_spec(name) is None]


def ask(
    folder: Path,
    form: Format,
    questions: Sequence[Question],
    *,
    device: Literal["cpu", "gpu"],
    should_stop: Callable[[], bool],
) -> list[Answer]:
    """Return the greedy answer to each question.

    Raises:
        StageError: the library does not load the folder, or fails; the message ends with its last lines.
        InterruptedRun: `should_stop` has asked for it.
    """
    has_code = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_type"] == OWN_MODEL_TYPE
    request = {
        "folder": str(folder),
        "has_code": has_code,
        "device": device,
        "questions": [_as_json(question) for question in questions],
    }
    with tempfile.TemporaryDirectory() as scratch:
        names = [Path(scratch, name) for name in ("questions.json", "answers.json")]
        write_text(names[0], json.dumps(request), durable=False)
        command = [sys.executable, str(_PROGRAMS / f"{form}_answers.py"), *map(str, names)]
        # transformers copies the folder's code into its cache, where it would stay.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch}
        _run(command, environment, Path(scratch, "log.txt"), should_stop)
        return [Answer(**answer) for answer in json.loads(names[1].read_text(encoding="utf-8"))]


def _run(command: list[str], environment: dict[str, str], log: Path, should_stop: Callable[[], bool]) -> None:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if should_stop():
                    raise InterruptedRun("stopped while the exported model was tried")
                time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
        raise StageError("\n".join(["the exported model cannot be run:", *lines]))


def _as_json(question: Question) -> dict[str, Any]:
    if isinstance(question.prompt, str):
        return {"text": question.prompt, "max_tokens": question.max_tokens}
    messages = [{"role": message.role, "content": message.text()} for message in question.prompt.messages]
    return {"messages": messages, "max_tokens": question.max_tokens}
