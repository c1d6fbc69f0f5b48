"""Sample texts for a report: greedy continuations of prompts, and answers to questions.

A prompt that leaves no room in the context loses its start, so that the model continues its end. The text says so, and
also if the context was full before the model ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.inference.engine import Engine, prompt_limit
from nanochat.tokenizer.chat_format import Conversation, Message, fit_for_completion


def sample_continuations(engine: Engine, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
    """Return each prompt with a continuation of at most `max_tokens` tokens."""
    tokenizer, limit = engine.tokenizer, prompt_limit(engine.model.config.sequence_len, max_tokens)
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    lost = [max(0, 1 + len(ids) - limit) for ids in encoded]
    read = [[tokenizer.bos_id, *ids[start:]] for ids, start in zip(encoded, lost, strict=True)]
    texts = _complete(engine, read, lost, max_tokens, use_calculator=False)
    return [prompt + text for prompt, text in zip(prompts, texts, strict=True)]


def sample_answers(engine: Engine, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
    """Return each question with an answer of at most `max_tokens` tokens."""
    tokenizer, limit = engine.tokenizer, prompt_limit(engine.model.config.sequence_len, max_tokens)
    conversations = [Conversation((Message("user", prompt),)) for prompt in prompts]
    fitted = [fit_for_completion(tokenizer, conversation, max_tokens=limit) for conversation in conversations]
    read, lost = [prompt.ids for prompt in fitted], [prompt.dropped_tokens for prompt in fitted]
    texts = _complete(engine, read, lost, max_tokens, use_calculator=True)
    return [f"{prompt}\n> {text}" for prompt, text in zip(prompts, texts, strict=True)]


def _complete(
    engine: Engine, read: Sequence[Sequence[int]], lost: Sequence[int], max_tokens: int, *, use_calculator: bool
) -> list[str]:
    """Return what follows each prompt, and in brackets how many tokens it lost, and whether the context is full."""
    context, texts = engine.model.config.sequence_len, []
    completions = engine.complete(read, max_tokens=max_tokens, use_calculator=use_calculator)
    for prompt, lost_tokens, completion in zip(read, lost, completions, strict=True):
        text = engine.tokenizer.decode(completion)
        if lost_tokens:
            whole, kept = len(prompt) + lost_tokens, len(prompt)
            text += f"\n[prompt of {whole:,} tokens: the model read only the last {kept:,}]"
        if len(completion) < max_tokens and len(prompt) + len(completion) == context:
            text += f"\n[stopped: the context of {context:,} tokens is full]"
        texts.append(text)
    return texts
