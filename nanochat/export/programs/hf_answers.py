"""Answers questions with transformers on the CPU, greedily: `python hf_answers.py QUESTIONS.json ANSWERS.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(questions: Path, answers: Path) -> None:
    """Read the questions and write the answers."""
    given = json.loads(questions.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(given["folder"])
    model = AutoModelForCausalLM.from_pretrained(given["folder"], trust_remote_code=given["has_code"])
    written = [_answer(model.eval(), tokenizer, question) for question in given["questions"]]
    with answers.open("w", encoding="utf-8") as file:
        json.dump(written, file)


def _answer(model: Any, tokenizer: Any, question: dict[str, Any]) -> dict[str, Any]:
    if "text" in question:
        prompt = tokenizer.encode(question["text"], split_special_tokens=True)  # names of special tokens are text
    else:
        prompt = tokenizer.apply_chat_template(question["messages"], add_generation_prompt=True, return_dict=False)
    rows = torch.tensor([prompt])
    limit = question["max_tokens"]
    written = model.generate(rows, attention_mask=torch.ones_like(rows), do_sample=False, max_new_tokens=limit)
    tokens = written[0, len(prompt) :].tolist()
    if tokens and tokens[-1] in model.generation_config.eos_token_id:
        tokens.pop()
    return {"prompt": list(prompt), "tokens": tokens, "text": tokenizer.decode(tokens)}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
