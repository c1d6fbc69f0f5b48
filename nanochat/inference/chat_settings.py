"""How answers of a chat are sampled, and the defaults that the terminal, the library, exports and MLflow share.

Never imports MLX, so that a command line can show the defaults. Not here: the chat itself (`chat_session`).
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.errors import RecipeError


@dataclass(frozen=True)
class ChatSettings:
    """How answers are sampled."""

    temperature: float = 0.8
    top_k: int | None = 50
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 42

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}: give a whole number of at least 0")
