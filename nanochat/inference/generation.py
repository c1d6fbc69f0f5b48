"""A request to continue a prompt, and its completion token by token, with a calculator that the model may call."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nanochat.inference.sampling import Sampling, row_key
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tools.calculator import calculate


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to continue it."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    seed: int = 0
    number: int = 0
    """Requests of one seed draw differently if their numbers differ."""
    use_calculator: bool = True

    @cached_property
    def key(self) -> tuple[int, int]:
        """Random key; token number n after the prompt is drawn with the key of draw n."""
        return row_key(self.seed, self.number)


class Markers:
    """The special tokens that the engine acts on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ends = frozenset({tokenizer.special("<|assistant_end|>"), tokenizer.bos_id})
        self.python_start = tokenizer.special("<|python_start|>")
        self.python_end = tokenizer.special("<|python_end|>")
        self.output_start = tokenizer.special("<|output_start|>")
        self.output_end = tokenizer.special("<|output_end|>")


class Completion:
    """The tokens generated so far for one request."""

    def __init__(self, request: Request, *, limit: int) -> None:
        self.request = request
        self.tokens: list[int] = []
        """Includes the calculator's output, but not the token that ended the answer."""
        self.is_drawn: list[bool] = []
        """Whether the model drew each token. It did not draw the calculator's output."""
        self.end_token: int | None = None
        """The token by which the model ended the answer."""
        self.ended: Literal["stop", "length"] | None = None
        """Why it ended: the model ended it, or it reached `limit`. None while it is unfinished."""
        self.limit = limit
        self.forced: deque[int] = deque()
        """Tokens of the calculator's output that come next, instead of tokens that the model draws."""
        self._code: list[int] | None = None
        """The tokens since the Python start marker; None outside of Python code."""

    def receive(self, drawn: int, markers: Markers, tokenizer: Tokenizer) -> None:
        """Write the drawn token or the forced one that replaces it, or end. Run the calculator after its last token."""
        is_forced = bool(self.forced)
        token = self.forced.popleft() if is_forced else drawn
        if token in markers.ends and not is_forced:
            self.ended, self.end_token = "stop", token
            return
        self.tokens.append(token)
        self.is_drawn.append(not is_forced)
        if self.request.use_calculator:
            self._follow_code(token, markers, tokenizer)
        if len(self.tokens) >= self.limit:
            self.ended = "length"

    def _follow_code(self, token: int, markers: Markers, tokenizer: Tokenizer) -> None:
        """Collect the tokens between the Python markers. After the last one, force the result if there is one."""
        if token == markers.python_start:
            self._code = []
        elif token == markers.python_end and self._code is not None:
            result = calculate(tokenizer.decode(self._code))
            self._code = None
            if result is not None:
                self.forced.extend([markers.output_start, *tokenizer.encode(result), markers.output_end])
        elif self._code is not None:
            self._code.append(token)
