"""The requests of clients: the bodies of the OpenAI API's requests, checked.

Fields of that API that would change an answer and that a small model cannot honour, such as tools, are refused. Fields
that change nothing, such as `user`, are accepted. Not here: responses (`responses`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nanochat.inference.sampling import Sampling
from nanochat.tokenizer.chat_format import Conversation, Message

_NO_EFFECT: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "parallel_tool_calls": (None, True, False),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "modalities": (None, ["text"]),
}
"""Fields that are honoured only at these values, which change nothing."""
_IGNORED = ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def message(self) -> Message:
        """Return it in our form. A developer's message counts as the system's."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class Generation(BaseModel):
    """The common fields of chat and plain completions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False, strict=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, strict=False)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_fields_without_effect(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in _NO_EFFECT.items():
            if name in values and values[name] not in neutral:
                raise ValueError(f"`{name}` is not supported")
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {
            name: value
            for name, value in values.items()
            if name not in (*_NO_EFFECT, *_IGNORED) and not (value is None and name in optional)
        }

    @property
    def token_limit(self) -> int | None:
        """Most tokens of an answer; None means as many as fit."""
        return self.max_tokens

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Generation):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        roles = [message.message().role for message in self.messages]
        spoken = roles[1:] if roles[0] == "system" else roles
        if not spoken or spoken != ["user" if i % 2 == 0 else "assistant" for i in range(len(spoken))]:
            raise ValueError("`messages` must be an optional system message, then user and assistant in turn")
        if spoken[-1] != "user":
            raise ValueError("the last of the `messages` must be the user's")
        return self

    def conversation(self) -> Conversation:
        """Return the messages in our form."""
        return Conversation(tuple(message.message() for message in self.messages))


class CompletionRequest(Generation):
    """The body of `/v1/completions`."""

    prompt: str

    @field_validator("prompt", mode="before")
    @classmethod
    def _take_a_single_prompt(cls, value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @property
    def token_limit(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # the default of that API
