"""The names of the stages, and the base of all specifications."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

StageName = Literal["tokenizer", "pretrain", "base_eval", "sft", "rl", "chat_eval", "export"]


class Spec(BaseModel):
    """Base of the stage specifications: frozen, JSON in and out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
