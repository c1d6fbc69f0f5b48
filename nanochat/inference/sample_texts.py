"""Sample texts for a report: greedy continuations of prompts, and answers to questions.

A prompt that leaves no room in the context loses its start, so that the model continues its end. The text says so, and
also if the context was full before the model ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.inference.engine import Engine, fit_text, prompt_limit
from nanochat.tokenizer.chat_format import Conversation, FittedPrompt, Message, fit_for_completion


def sample_continuations(engine: Engine, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
    """Return each prompt with a continuation of at most `max_tokens` tokens."""
    limit = prompt_limit(engine.model.config.sequence_len, max_tokens)
    fitted = [fit_text(engine.tokenizer, prompt, max_tokens=limit) for prompt in prompts]
    texts = _complete(engine, fitted, max_tokens, use_calculator=False)
    return [prompt + text for prompt, text in zip(prompts, texts, strict=True)]


def sample_answers(engine: Engine, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
    """Return each question with an answer of at most `max_tokens` tokens."""
    tokenizer, limit = engine.tokenizer, prompt_limit(engine.model.config.sequence_len, max_tokens)
    conversations = [Conversation((Message("user", prompt),)) for prompt in prompts]
    fitted = [fit_for_completion(tokenizer, conversation, max_tokens=limit) for conversation in conversations]
    texts = _complete(engine, fitted, max_tokens, use_calculator=True)
    return [f"{prompt}\n> {text}" for prompt, text in zip(prompts, texts, strict=True)]


def _complete(engine: Engine, prompts: Sequence[FittedPrompt], max_tokens: int, *, use_calculator: bool) -> list[str]:
    """Return what follows each prompt, and in brackets how many tokens it lost, and whether the context is full."""
    context, texts = engine.model.config.sequence_len, []
    read = [prompt.ids for prompt in prompts]
    completions = engine.complete(read, max_tokens=max_tokens, use_calculator=use_calculator)
    for prompt, completion in zip(prompts, completions, strict=True):
        text, kept = engine.tokenizer.decode(completion), len(prompt.ids)
        if prompt.dropped_tokens:
            whole = kept + prompt.dropped_tokens
            text += f"\n[prompt of {whole:,} tokens: the model read only the last {kept:,}]"
        if len(completion) < max_tokens and kept + len(completion) == context:
            text += f"\n[stopped: the context of {context:,} tokens is full]"
        texts.append(text)
    return texts
