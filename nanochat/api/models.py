"""A trained model in Python: chat, complete, score, and the logits."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from nanochat import runtime
from nanochat.errors import RecipeError
from nanochat.evals.metrics import Score as Score
from nanochat.inference.chat_settings import ChatSettings
from nanochat.plurals import several

if TYPE_CHECKING:  # MLX is imported after `runtime.prepare`
    import numpy as np
    import numpy.typing as npt

    from nanochat.inference.chat_session import ChatSession
    from nanochat.inference.engine import Engine
    from nanochat.runtime import Runtime
    from nanochat.tokenizer.bpe import Tokenizer

Messages = Sequence[Mapping[str, str]]


class Model:
    """A trained model with its tokenizer. All text goes in and comes out as `str`."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        """Use `nanochat.load` instead."""
        self._engine = engine
        self.folder = folder
        """The model folder that it was loaded from."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: `encode` and `decode`."""
        return self._engine.tokenizer

    @property
    def context(self) -> int:
        """The number of tokens that the model reads at most."""
        return self._engine.model.config.sequence_len

    def chat(
        self,
        message: str | Messages,
        *,
        system: str | None = None,
        temperature: float = ChatSettings.temperature,
        top_k: int | None = ChatSettings.top_k,
        top_p: float = ChatSettings.top_p,
        max_tokens: int = ChatSettings.max_tokens,
        seed: int = ChatSettings.seed,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Return the answer to a message. The same seed gives the same answer.

        A RuntimeWarning says what of the conversation the model did not read, because the context has no room for it.

        Args:
            message: a question, or a conversation as `[{"role": "user", "content": ...}, {"role": "assistant", ...},
                ...]` whose last message is the user's.
            system: the system prompt.
            temperature: 0 always takes the most likely token.
            top_k: sample from this many most likely tokens; None for all.
            top_p: sample from the most likely tokens that reach this probability.
            max_tokens: the longest answer.
            seed: draws another answer.
            on_text: called with each piece of the answer as it is generated.

        Raises:
            RecipeError: a setting is wrong, or the conversation is not one.
        """
        settings = ChatSettings(temperature, top_k, top_p, max_tokens, seed)
        session = self._session(settings, system=system, is_raw=False)
        question = message if isinstance(message, str) else _continue_conversation(session, message)
        return _collect(session, question, on_text)

    def complete(
        self,
        text: str,
        *,
        temperature: float = ChatSettings.temperature,
        top_k: int | None = ChatSettings.top_k,
        top_p: float = ChatSettings.top_p,
        max_tokens: int = ChatSettings.max_tokens,
        seed: int = ChatSettings.seed,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Return a continuation of a text, as a base model writes it, without the text. Arguments as for `chat`."""
        settings = ChatSettings(temperature, top_k, top_p, max_tokens, seed)
        session = self._session(settings, system=None, is_raw=True)
        return _collect(session, text, on_text)

    def logits(self, text: str | Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits of the token after each token, (T, V): T tokens with BOS, V sizes of the vocabulary.

        Args:
            text: a text, before which BOS is put, or the ids of tokens.

        Raises:
            RecipeError: there are no tokens, more than the context holds, or ids that the model does not know.
        """
        import mlx.core as mx
        import numpy as np

        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(text)] if isinstance(text, str) else list(text)
        vocabulary = self.tokenizer.vocab_size
        if not 1 <= len(ids) <= self.context:
            raise RecipeError(f"the text has {len(ids):,} tokens with BOS; give 1 to {self.context:,}")
        if not all(0 <= i < vocabulary for i in ids):
            raise RecipeError(f"an id is not one of the {vocabulary:,} tokens of the model")
        logits = self._engine.model(mx.array([ids]))[0, :, :vocabulary]
        return np.array(logits.astype(mx.float32))

    def score(self, text: str, *, given: str = "") -> Score:
        """Return how likely the model finds a text, after the text `given`.

        Raises:
            RecipeError: both texts together do not fit into the context, or nothing is left to score.
        """
        from nanochat.evals.continuations import common_prefix_length, make_continuation, score_continuations

        before = [self.tokenizer.bos_id, *self.tokenizer.encode(given)]
        row = [self.tokenizer.bos_id, *self.tokenizer.encode(given + text)]
        start = common_prefix_length(before, row)  # tokens may join the end of `given` with the text
        if len(row) > self.context or start == len(row):
            raise RecipeError(
                f"{several(len(row), 'token')} with BOS, {len(row) - start:,} of them to score: the model reads"
                f" {self.context:,}, and at least one is needed"
            )
        ((score,),) = score_continuations(self._engine.model, [[make_continuation(row, start, max_tokens=None)]])
        return score

    def __repr__(self) -> str:
        """Return the architecture, the size and the folder."""
        config = self._engine.model.config
        return f"<nanochat.Model {config.architecture}, {config.num_parameters():,} parameters, {self.folder}>"

    def _session(self, settings: ChatSettings, *, system: str | None, is_raw: bool) -> ChatSession:
        from nanochat.inference.chat_session import ChatSession

        return ChatSession(self._engine, system=system, settings=settings, is_raw=is_raw)


def load(
    model: str | Path, *, device: Literal["auto", "cpu", "gpu"] = "auto", base_dir: str | Path | None = None
) -> Model:
    """Return a trained model.

    Call it before anything else imports MLX: on a Linux CPU, MLX takes the fast matrix products that are set up here.

    Args:
        model: the name of a run, or the folder of a run, a stage or a model.
        device: where to compute; `auto` is a GPU if there is one.
        base_dir: the folder with the results of all runs. Default: `NANOCHAT_BASE_DIR` or `~/.cache/nanochat`.

    Raises:
        RecipeError: there is no such model.
        PreflightError: a file of the model is missing or damaged, or there is no such device.
    """
    from nanochat.runner.store.run_catalog import find_model

    folder = find_model(str(model), runtime.base_dir(base_dir))
    is_late = "mlx.core" in sys.modules and not runtime.is_prepared()
    chosen = runtime.prepare(device=device)
    if is_late and sys.platform == "linux" and chosen.backend == "cpu":
        warnings.warn("MLX was imported before nanochat.load, so its matrix products are slow", RuntimeWarning, 2)
    return Model(open_engine(folder, chosen), folder)


def open_engine(folder: Path, chosen: Runtime) -> Engine:
    """Return an engine for the model in a folder, on the device that `runtime.prepare` chose."""
    import mlx.core as mx

    from nanochat.checkpoint.model_folder import load_model_and_tokenizer
    from nanochat.inference.engine import Engine
    from nanochat.model.device import select_device

    select_device(chosen.backend)
    dtype = mx.bfloat16 if chosen.dtype == "bfloat16" else mx.float32
    return Engine(*load_model_and_tokenizer(folder, dtype))


def _continue_conversation(session: ChatSession, messages: Messages) -> str:
    """Put a conversation into a session, and return its last message, which the user wrote."""
    from nanochat.tokenizer.chat_format import Message, Role

    if not all(set(message) == {"role", "content"} for message in messages):
        raise RecipeError("each message of a conversation needs `role` and `content`, and nothing else")
    *earlier, last = messages or [{"role": "", "content": ""}]
    if earlier and earlier[0]["role"] == "system" and session.system is None:
        session.system, earlier = earlier[0]["content"], earlier[1:]
    roles = [message["role"] for message in (*earlier, last)]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise RecipeError(f"a conversation alternates between user and assistant and ends with user, not {roles}")
    session.turns = tuple(Message(cast(Role, message["role"]), message["content"]) for message in earlier)
    return last["content"]


def _collect(session: ChatSession, text: str, on_text: Callable[[str], None] | None) -> str:
    pieces = []
    for piece in session.reply(text):
        pieces.append(piece)
        if on_text is not None:
            on_text(piece)
    for note in session.unread:
        warnings.warn(note, RuntimeWarning, 3)
    return "".join(pieces)
