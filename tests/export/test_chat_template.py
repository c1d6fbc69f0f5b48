"""The chat template renders conversations as `tokenizer.chat_format` does."""

from __future__ import annotations

import random
import re
from typing import Any, NoReturn

import jinja2
import pytest
from export_conversations import random_conversation

from nanochat.export.tokenizer_files import GUARD, chat_template
from nanochat.tokenizer import bpe
from nanochat.tokenizer.chat_format import render, render_for_completion


def fail(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers sets them
    environment.globals["raise_exception"] = fail
    return environment.from_string(chat_template())


def ids_of(text: str, tokenizer: bpe.Tokenizer) -> list[int]:
    """Return the ids of rendered text as `tokenizer.json` defines them: special tokens first, then the guard."""
    ids: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, bpe.SPECIAL_TOKENS)) + ")", text):
        if part in bpe.SPECIAL_TOKENS:
            ids.append(tokenizer.special(part))
        else:
            ids += tokenizer.encode(re.sub(f"(?<=<){GUARD}(?=[{GUARD}|])", "", part))
    return ids


@pytest.fixture(scope="module")
def tokenizer() -> bpe.Tokenizer:
    return bpe.train(["the cat sat on the mat <|user_end|>"], vocab_size=290, max_chars=99, max_document_chars=99)


def test_chat_template_gives_our_rendering(tokenizer):
    """A thousand conversations: system prompts, several turns, calls of the calculator, names of special tokens."""
    draw, compiled = random.Random(5), template()
    for _ in range(1000):
        conversation, messages = random_conversation(draw)
        text = compiled.render(messages=messages, add_generation_prompt=False)
        assert ids_of(text, tokenizer) == render(tokenizer, conversation).ids
        if messages[-1]["role"] == "user":
            prompt = compiled.render(messages=messages, add_generation_prompt=True)
            assert ids_of(prompt, tokenizer) == render_for_completion(tokenizer, conversation)


@pytest.mark.parametrize(
    "roles",
    [["assistant"], ["user", "user"], ["system"], ["system", "assistant"], ["user", "system"], ["user", "tool"]],
)
def test_chat_template_refuses_roles_in_another_order(roles):
    messages: list[dict[str, Any]] = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(jinja2.TemplateError, match="must"):
        template().render(messages=messages)
