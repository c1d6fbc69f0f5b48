"""Answers questions with mlx-lm, greedily: `python mlx_answers.py QUESTIONS.json ANSWERS.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step


def main(questions: Path, answers: Path) -> None:
    """Read the questions and write the answers."""
    given = json.loads(questions.read_text(encoding="utf-8"))
    mx.set_default_device(mx.Device(mx.cpu if given["device"] == "cpu" else mx.gpu))
    model, tokenizer = load(given["folder"], trust_remote_code=given["has_code"])
    written = [_answer(model, tokenizer, question) for question in given["questions"]]
    with answers.open("w", encoding="utf-8") as file:
        json.dump(written, file)


def _answer(model: Any, tokenizer: Any, question: dict[str, Any]) -> dict[str, Any]:
    if "text" in question:
        prompt = tokenizer.encode(question["text"], split_special_tokens=True)  # names of special tokens are text
    else:
        prompt = tokenizer.apply_chat_template(question["messages"], add_generation_prompt=True)
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=question["max_tokens"]):
        if int(token) in tokenizer.eos_token_ids:
            break
        tokens.append(int(token))
    return {"prompt": list(prompt), "tokens": tokens, "text": tokenizer.decode(tokens)}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
