"""The errors of a row of chat data, which say why it is not used, or only its beginning."""

from __future__ import annotations


class BadConversation(ValueError):  # noqa: N818 -- a refused row is counted; it is not an error by itself
    """A row cannot be used. The message says why."""


class LeftOutRow(BadConversation):
    """A row has nothing to train on. It is counted, but it is not a fault of the data."""


class UntrainedRow(LeftOutRow):
    """The row itself says that it is not to be trained on."""


class NotText(BadConversation):
    """A message holds something that is not text, or an answer depends on it.

    Attributes:
        what: its kind, for counts: `a tool`.
        is_question: whether the user sent it, so that the answer before it is complete.
    """

    def __init__(self, what: str, message: str, *, is_question: bool) -> None:
        super().__init__(message)
        self.what, self.is_question = what, is_question
