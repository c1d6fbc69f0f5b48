"""Counts the texts of a split, and describes the split or a table in the lines that `nanochat-run data` prints.

The counts are sizes, scripts and duplicates (`Survey`). Not here: reading the texts (`survey_splits`).
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from nanochat.data.files.digests import SeenTexts
from nanochat.data.ingest.preview import FilePreview
from nanochat.errors import PreflightError
from nanochat.plan.quantities import shorten, show_bytes
from nanochat.plurals import several

SHOWN_CHARS = 600
"""Characters that are shown of a document or a conversation."""
_SHOWN_CELL_CHARS = 60
TextRun = tuple[str, bool]
"""A run of text, and whether the model is trained on it."""
QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
_SHOWN_SCRIPTS = 4
_SCRIPT_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han"}


@dataclass
class Survey:
    """Counts over the texts that were added.

    Attributes:
        lengths: the characters of each text.
        token_lengths: the tokens of each text; empty without a tokenizer.
        size_bytes: the size of all texts in UTF-8.
        characters: how often each character occurs.
    """

    lengths: list[int] = field(default_factory=list)
    token_lengths: list[int] = field(default_factory=list)
    size_bytes: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    _seen: SeenTexts = field(default_factory=SeenTexts)

    @property
    def duplicates(self) -> int:
        """The number of texts that equal an earlier one."""
        return self._seen.duplicates

    def add(self, text: str, *, identity: str | None = None) -> None:
        """Count a text, but not its tokens. It is a duplicate if its identity (default: the text) was added before."""
        self._seen.add(identity or text)
        self.lengths.append(len(text))
        self.size_bytes += len(text.encode("utf-8", "surrogatepass"))
        self.characters.update(text)

    def scripts(self) -> list[tuple[str, float]]:
        """Return the scripts of the letters with their shares, the most frequent ones first."""
        counts: Counter[str] = Counter()
        for character, count in self.characters.items():
            if character.isalpha():
                counts[_script(character)] += count
        return [(name, count / counts.total()) for name, count in counts.most_common(_SHOWN_SCRIPTS)]


@dataclass
class SplitReport:
    """The counts, the first texts and the notes of a split of a source.

    Attributes:
        title: the split, and the task if there is one.
        unit: documents or conversations.
        limit: how many of them were read at most.
        is_whole: whether all were read.
        texts: the first documents.
        chats: the first conversations, each in runs.
        notes: sentences for the user, such as the number of rows that are not used.
        error: the error that ended the reading too early.
    """

    title: str
    unit: str
    limit: int
    is_whole: bool = False
    survey: Survey = field(default_factory=Survey)
    texts: list[str] = field(default_factory=list)
    chats: list[list[TextRun]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: PreflightError | None = None

    def lines(self) -> Iterator[str]:
        """Yield the counts as lines of text. Not here: the first documents and conversations."""
        survey = self.survey
        count = len(survey.lengths)
        if count:
            which = "" if self.is_whole or self.error is not None else "the first "
            tokens = f", {several(sum(survey.token_lengths), 'token')}" if survey.token_lengths else ""
            yield (
                f"{self.title}: {which}{several(count, self.unit.removesuffix('s'))}, "
                f"{show_bytes(survey.size_bytes)}{tokens}"
            )
            yield f"  characters: {_show_quantiles(survey.lengths)}"
            if survey.token_lengths:
                yield f"  tokens: {_show_quantiles(survey.token_lengths)}"
            scripts = ", ".join(f"{name} {share:.1%}" for name, share in survey.scripts() if share >= 0.0005)
            yield f"  scripts: {scripts or 'no letters'}"
            yield f"  duplicates: {survey.duplicates:,} ({survey.duplicates / count:.1%})"
        else:
            yield f"{self.title}: no {self.unit}"
        for note in self.notes:
            yield f"  {note}"


def describe_preview(preview: FilePreview) -> list[str]:
    """Return the columns and the first rows of a table that is not converted yet, as lines of text."""
    name = preview.path.name
    lines = [f"{name}: {preview.problem}"] if preview.problem else []
    if preview.columns:
        which = "" if preview.is_whole else "at least "
        rows = several(preview.rows_in_head, "row")
        lines.append(f"{name}: {which}{rows} with the columns {', '.join(preview.columns)}; the first ones:")
    for row in preview.rows:
        cells = (
            f"{column} {json.dumps(shorten(value, _SHOWN_CELL_CHARS), ensure_ascii=False)}"
            for column, value in zip(preview.columns, row, strict=True)
            if value is not None
        )
        lines.append(f"  {', '.join(cells)}")
    return lines


def _show_quantiles(values: list[int]) -> str:
    names = {0.0: "least", 0.5: "median", 1.0: "most"}
    shown = zip(QUANTILES, quantiles(values), strict=True)
    return ", ".join(f"{names.get(share, f'{share:.0%}')} {value:,}" for share, value in shown)


def quantiles(values: Sequence[int]) -> list[int]:
    """Return the values at `QUANTILES`: the least value, ..., the median, ..., the largest one."""
    ordered = sorted(values)
    return [ordered[round(share * (len(ordered) - 1))] for share in QUANTILES]


@cache
def _script(letter: str) -> str:
    """Return the script of a letter, which is the first word of its name in Unicode."""
    word = unicodedata.name(letter, "other").split()[0].partition("-")[0]
    return _SCRIPT_NAMES.get(word, word.capitalize())
