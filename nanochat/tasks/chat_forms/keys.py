"""Decides which keys of a chat row or message change its meaning, and which only describe it.

A key that no form reads is refused if its name or its value suggests that it carries meaning, such as `tools`,
`documents` or `is_correct`. Other keys are ignored, and named once per source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from nanochat.data.files.formats.parquet_batches import UnreadableCell
from nanochat.tasks.chat_forms.row_errors import BadConversation

TRAINED_IF_FALSE = (
    *("invalid", "incorrect", "wrong", "discard", "do_not_use", "toxic", "unsafe", "spam", "notrain", "untrainable"),
)
"""Flags that say that a message or a row is not trained on, if they are true."""
FLAGS = ("weight", "loss_weight", "loss", "train", "training", "trainable", "label", "usable", *TRAINED_IF_FALSE)
"""Keys that say whether a message or a row is trained on: if true, or, for `TRAINED_IF_FALSE`, if false."""

_MEANINGFUL = re.compile(
    r"""
    accept|answer|approv|assistant|attach|audio|bad|bot|call|channel|character|chosen|chunk|citation|code|completion|
    content|context|conversation|correct|cot|critique|delet|dialog|disabl|document|drop|enabl|eval|exam|exclud|feedback|
    fewshot|flag|func|gold|good|gpt|held|hidden|hide|histor|holdout|human|ideal|ignor|image|img|includ|input|instruct|
    keep|knowledge|label|learn|loss|mask|media|memory|message|output|passage|persona|pixel|plugin|prefer|prefix|
    previous|profile|prompt|query|question|rationale|reason|recipient|refer|refus|reject|remov|reply|response|retriev|
    role|schema|shot|skip|solution|speaker|split|style|suffix|system|target|test|think|thought|tone|tool|train|valid|
    video|weight
    """,
    re.VERBOSE,
)
"""Beginnings of words in the names of keys that may change what a row means."""

_MEANINGFUL_NAMES = re.compile(
    r"(article|paragraph|story|evidence|background|source_?text|body|snippet|table|premise|transcript|email|abstract|"
    r"fact|hint|choice|option|sys|sys_?prompt|sys_?msg|pre_?prompt)s?"
)
"""Whole names of keys that hold what a question is about, or instructions."""

_MAX_DESCRIPTION_CHARS = 80
_LONG_DESCRIPTIVE = re.compile(
    r"(.*_)?(id|uuid|hash|sha\d*|md5|fingerprint|url|uri|link|path|file|filename|title|source|dataset|model|topic|"
    r"category|language|lang|license|licence|author|timestamp|time|date|created|when|note|comment|name|at)s?"
)
"""Names of texts of any length that only describe a row."""

_DESCRIPTIVE = re.compile(
    r"(.*_)?(ids?|uuid|hash|fingerprint|count|length|chars|words|tokens|time|date|at|score|rating|lang|language|model)"
    r"|(num|n|meta)_.*|(file|model|source|dataset|author)_?name"
)
"""Names of single values that describe a row whatever the rest of the name says, such as `prompt_id`."""

_DESCRIPTIVE_NESTED = re.compile(
    r"categories|domains|(.*_)?header|ids|languages|logprobs|meta|metadata|(.*_)?moderation|ratings|scores|tags|topics|"
    r"usage"
)
"""Names of lists and maps that describe a row."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_TRUE, _FALSE = frozenset({"true", "yes", "1", "1.0"}), frozenset({"false", "no", "0", "0.0"})


def present(row: Mapping[object, object] | Mapping[str, object]) -> dict[str, object]:
    """Return the keys that have a value. Null, NaN, and empty texts, lists and maps count as no value.

    Raises:
        BadConversation: a value cannot be read.
    """
    kept: dict[str, object] = {}
    for key, value in row.items():
        if isinstance(value, UnreadableCell):
            raise BadConversation(f"`{key}` cannot be read: {value.reason}")
        if not (value is None or value == "" or value == [] or value == {} or _is_nan(value)):
            kept[str(key)] = value
    return kept


def take_flags(row: dict[str, object], where: str = "") -> tuple[str, bool] | None:
    """Remove the keys in `FLAGS` from a row or message. Return the first that forbids training, else any.

    The flag comes with whether it allows training. None if there is no such key.

    Raises:
        BadConversation: a value is neither true nor false.
    """
    flags = [(key, _read_flag(key, row.pop(key), where) != (key in TRAINED_IF_FALSE)) for key in FLAGS if key in row]
    return min(flags, key=lambda flag: flag[1], default=None)


def check_unread(row: Mapping[str, object], ignored: set[str], where: str = "") -> None:
    """Add the keys that no form has read to `ignored`.

    Raises:
        BadConversation: one of them may change what the row means.
    """
    for key, value in row.items():
        is_nested = isinstance(value, list | dict)
        is_refused = may_change_meaning(key, is_nested=is_nested, in_message=bool(where))
        if is_refused or (_is_long_text(value) and is_long_text_refused(key)):
            raise BadConversation(
                f"{where}the key `{key}` is not supported and may change the meaning; remove it from the rows, or "
                "write its meaning into the messages"
            )
        ignored.add(key)


def may_change_meaning(key: str, *, is_nested: bool, in_message: bool = False) -> bool:
    """Return whether an unread key carries meaning, judged by its name and by whether its value is a list or a map."""
    if is_nested:
        return _DESCRIPTIVE_NESTED.fullmatch(key.lower()) is None
    if in_message and key.lower() == "name":
        return True
    if _DESCRIPTIVE.fullmatch(key.lower()):
        return False
    if _MEANINGFUL_NAMES.fullmatch(key.lower()):
        return True
    return any(_MEANINGFUL.match(word) for word in words_of(key))


def words_of(key: str) -> list[str]:
    """Return the words of a key in lower case, such as `reasoning` and `content` for `reasoningContent`."""
    return [word.lower() for word in _WORD.findall(key)]


def is_long_text_refused(key: str) -> bool:
    """Return whether text under an unread key is too much for a description if it is long."""
    return not (_LONG_DESCRIPTIVE.fullmatch(key.lower()) or _DESCRIPTIVE.fullmatch(key.lower()))


def _is_long_text(value: object) -> bool:
    return isinstance(value, str) and len(value) > _MAX_DESCRIPTION_CHARS and " " in value.strip()


def _read_flag(key: str, value: object, where: str) -> bool:
    word = str(value).strip().lower()
    if word not in _TRUE | _FALSE:
        raise BadConversation(f"{where}`{key}` must be 0 or 1, or true or false; found {str(value)[:40]!r}")
    return word in _TRUE


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
