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
    read = [[tokenizer.bos_id, *ids[max(0, 1 + len(ids) - limit) :]] for ids in encoded]
    completions = engine.complete(read, max_tokens=max_tokens, use_calculator=False)
    notes = _limit_notes(engine, [1 + len(ids) for ids in encoded], read, completions, max_tokens)
    texts = [tokenizer.decode(completion) for completion in completions]
    return [prompt + text + note for prompt, text, note in zip(prompts, texts, notes, strict=True)]


def sample_answers(engine: Engine, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
    """Return each question with an answer of at most `max_tokens` tokens."""
    tokenizer, limit = engine.tokenizer, prompt_limit(engine.model.config.sequence_len, max_tokens)
    conversations = [Conversation((Message("user", prompt),)) for prompt in prompts]
    fitted = [fit_for_completion(tokenizer, conversation, max_tokens=limit) for conversation in conversations]
    read = [prompt.ids for prompt in fitted]
    answers = engine.complete(read, max_tokens=max_tokens)
    notes = _limit_notes(engine, [len(p.ids) + p.dropped_tokens for p in fitted], read, answers, max_tokens)
    texts = [tokenizer.decode(answer) for answer in answers]
    return [f"{prompt}\n> {text}{note}" for prompt, text, note in zip(prompts, texts, notes, strict=True)]


def _limit_notes(
    engine: Engine,
    prompt_lengths: Sequence[int],
    read: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    max_tokens: int,
) -> list[str]:
    """Return for each sample what the context cut off, as lines in brackets, or an empty text."""
    context, notes = engine.model.config.sequence_len, []
    for length, prompt, completion in zip(prompt_lengths, read, completions, strict=True):
        note = ""
        if len(prompt) < length:
            note += f"\n[prompt of {length:,} tokens: the model read only the last {len(prompt):,}]"
        if len(completion) < max_tokens and len(prompt) + len(completion) == context:
            note += f"\n[stopped: the context of {context:,} tokens is full]"
        notes.append(note)
    return notes
