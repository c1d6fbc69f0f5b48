"""The rules that grade the answer to a question as text: `exact`, `number`, `contains`, `regex` and `letter`.

`recipes/evaluations.md` lists for each rule which answers are right and which are nearly right, but wrong. Not here:
grading programs (`python_grader`).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import assert_never

from nanochat.tasks.parsing import strip_special_tokens
from nanochat.tasks.table import TextRule
from nanochat.tasks.task import GradingError
from nanochat.tools.sandbox.run import find_isolation, run_tests
from nanochat.tools.sandbox.settings import Limits

MAX_COMPLETION_CHARS = 1 << 20
"""A longer completion is not graded."""
REGEX_LIMITS = Limits(wall_seconds=2.0, cpu_seconds=1)
_HAS_DIGIT = re.compile(r"\d")
_BEFORE_NUMBER = re.compile(r"(?:\\boxed\{|[\"'`*_(\[{~≈$€£])*")
_AFTER_NUMBER = re.compile(r"[\"'`*_)\]}.,;:!?%€£]*")
_NUMBER = re.compile(
    r"[-+−]?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
)
_MAX_NUMBER_CHARS = 64
_AROUND_LETTER = " \t\n\"'`*_()[]{}.,:;!?="
_SEARCH = "import re\ndef search(pattern, text):\n    return re.search(pattern, text) is not None\n"


def grade_text(rule: TextRule, completion: str, answers: Sequence[str], *, labels: Sequence[str] = ()) -> float:
    """Return 1 if the completion gives one of the answers, else 0.

    Args:
        answers: the accepted texts, for `regex` patterns, for `letter` the label of the right choice.
        labels: the labels of all choices, which `letter` needs.

    Raises:
        GradingError: the completion is too long, or a pattern took too long.
    """
    text = strip_special_tokens(completion)
    if len(text) > MAX_COMPLETION_CHARS:
        raise GradingError(f"the completion has {len(text):,} characters; at most {MAX_COMPLETION_CHARS:,} are graded")
    match rule:
        case "exact":
            return float(any(_plain(text) == _plain(answer) for answer in answers))
        case "number":
            number = final_number(text)
            return float(number is not None and any(number == _read_answer(answer) for answer in answers))
        case "contains":
            return float(any(_occurs(_plain(answer), _plain(text)) for answer in answers))
        case "letter":
            return float(chosen_label(text, labels) in answers)
        case "regex":
            return float(any(_matches(answer, text) for answer in answers))
        case _:
            assert_never(rule)


def check_answer(rule: TextRule, answer: str) -> str | None:
    """Return why an answer of the data cannot be used with a rule, or None if it can."""
    if rule == "number" and _read_answer(answer) is None:
        return f"`{answer}` is not a number"
    if rule == "regex":
        try:
            re.compile(answer)
        except (re.error, RecursionError, OverflowError) as error:
            return f"`{answer}` is not a regular expression: {error}"
    return None if answer.strip() else "an answer is empty"


def _read_answer(text: str) -> Decimal | None:
    """Return the number that an answer of the data is: the one after `####` if it has that, else the whole text."""
    return _read_number(text.rpartition("####")[2].strip())


def final_number(text: str) -> Decimal | None:
    """Return the last number of a text, or None if the last word with a digit is not a number.

    `$1,000.`, `**42**`, `x=7`, `\\boxed{3}` and `50%` are numbers (50 for the last one). Parts of something longer are
    not: `10/3`, `10x`, `3kg`. Digits of other scripts are not read.
    """
    words = [word for word in text.split() if _HAS_DIGIT.search(word)]
    return _read_number(words[-1].rpartition("=")[2]) if words else None


def _read_number(word: str) -> Decimal | None:
    before = _BEFORE_NUMBER.match(word)
    assert before is not None, "the pattern matches the empty text"
    # `$` may come before or after the sign. `_NUMBER` reads the second form.
    number = _NUMBER.match(word, before.end())
    if number is None or len(number[0]) > _MAX_NUMBER_CHARS or not _AFTER_NUMBER.fullmatch(word, number.end()):
        return None
    return Decimal(number[0].replace(",", "").replace("$", "").replace("−", "-"))


def chosen_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that an answer chooses, or None if it chooses none or is not clear.

    These choose B: `B`, `(B)`, `**B**`, `B.`, `B) Paris`, `B: Paris`, `B=Paris`, `B` alone on the first line,
    `Answer: B`, `The answer is (B).`
    Case matters. A letter elsewhere in a text does not count.
    """
    if (whole := text.strip(_AROUND_LETTER)) in tuple(labels):
        return whole
    options = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    first = re.match(rf"[\"'`*_(\[]*({options})[\"'`*_]*(?:\n|[.):=\]][\"'`*_]*(?:\s|$|(?<==)\S))", text)
    if first is not None:
        return first[1]
    stated = re.findall(rf"(?i:\banswer(?:\s+is)?\s*:?)[\s\"'`*_(\[]*({options})[\"'`*_)\].,:;!?]*(?:\n|$)", text)
    return stated[-1] if stated else None


def _plain(text: str) -> str:
    """Return a text in one form of Unicode, without white space at the ends."""
    return unicodedata.normalize("NFC", text).strip()


def _occurs(answer: str, text: str) -> bool:
    """Return whether an answer occurs in a text, in any case, but not as a part of a longer word or number."""
    answer, text = answer.casefold(), text.casefold()
    before = r"(?<!\w)(?<!\d[.,])" if answer[:1].isalnum() else ""
    after = r"(?!\w)(?![.,]\d)" if answer[-1:].isalnum() else ""
    return re.search(before + re.escape(answer) + after, text) is not None


def _matches(pattern: str, text: str) -> bool:
    """Return whether a pattern is found in a text. The search runs in a process of its own, because it may not end."""
    arguments = json.dumps([pattern, text])
    tests = f"import json\nREPORT = json.dumps(search(*json.loads({arguments!r})))"
    isolation = find_isolation(accept_none=True)  # it runs no code of others
    outcome = run_tests(_SEARCH, tests, functions=["search"], limits=REGEX_LIMITS, isolation=isolation)
    if not outcome.passed:
        raise GradingError(f"the pattern `{pattern}` did not end its search: {outcome.message}")
    return bool(json.loads(outcome.report))
