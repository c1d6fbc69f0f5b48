"""Describes the files that stages read from each source: how many of those found, their size, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from nanochat.data.files.content_checks import has_rows, why_without_text
from nanochat.data.files.file_kinds import reader_of
from nanochat.data.files.file_sizes import count_texts
from nanochat.data.files.readers import TXT_DOCUMENT_CHARS
from nanochat.data.files.selection.file_choice import EMPTY, FileChoice, distinct_names, list_reasons
from nanochat.data.ingest.store import parts_by_file
from nanochat.data.source_splits import DocumentFiles, document_files, has_split, row_files, with_content
from nanochat.data.sources.source_contents import list_files
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.data.splits import parse_split
from nanochat.errors import PreflightError, StageError
from nanochat.plan.quantities import show_bytes
from nanochat.plan.specs.inputs import Input, WeightedSource
from nanochat.plan.specs.suites import BpbSuiteSpec, ChoiceSuiteSpec, CoreSuiteSpec, QuestionsSuiteSpec
from nanochat.plurals import list_names, several
from nanochat.tasks.table import TASKS

_COUNTED_BYTES = 1 << 28
"""Documents of larger text files are not counted, because that would take more than seconds."""
_NAMED_IN_WARNINGS = 6
_TINY_BYTES = 1 << 16
_TINY_SHARE = 0.01
"""Validation files that are smaller than both, the share being that of the text, are doubted."""


@dataclass(frozen=True)
class SourceUse:
    """The files that some stages read from one source.

    Attributes:
        source: the name of the source.
        files: the files read by at least one stage, and those that none of them reads.
        unit: what a row of the files is: `document` or `row`.
        rows: the number of documents or rows in the files; None if they have not been looked into.
        is_local: whether the recipe gives the files by their paths. Of a data set, files that are not read are usual.
        doubts: sentences on files whose use may not be what the user wants.
    """

    source: str
    files: FileChoice[Path]
    unit: str
    rows: int | None = None
    is_local: bool = True
    doubts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The size of the files read, in bytes."""
        return sum(file.size for file in self.files.used)

    @property
    def warnings(self) -> list[str]:
        """What the user should know before a run: files that are left out although they hold text, and doubts."""
        warnings = list(self.doubts)
        if self.is_local and (missed := [path for path, _ in self.files.missed]):
            names = list_names(distinct_names(missed, self.files.paths), most=_NAMED_IN_WARNINGS)
            what = f"{several(len(missed), 'file')} with text or rows {'is' if len(missed) == 1 else 'are'} not read"
            warnings.insert(0, f"source `{self.source}`: {what}: {names}; `left out` in the plan says why")
        return warnings

    def to_json(self) -> dict[str, JsonValue]:
        """Return the files as JSON values."""
        return {
            "bytes": self.size,
            "left_out": {str(path): reason for path, reason in self.files.left_out},
            "notes": list(self.files.notes),
            "warnings": list(self.warnings),
        }

    def describe(self) -> str:
        """Return, for example, `docs: 1 of 2 files, 60 KiB; left out: c.md (not .txt)`."""
        used, found = len(self.files.used), self.files.found
        parts = [several(found, "file") if used == found else f"{used:,} of {several(found, 'file')}"]
        parts += [several(self.rows, self.unit)] if self.rows is not None else []
        left_out = f"; left out: {list_reasons(self.files.left_out, self.files.paths)}" if self.files.left_out else ""
        notes = "".join(f"; {note}" for note in self.files.notes)
        return f"{self.source}: {', '.join([*parts, show_bytes(self.size)])}{left_out}{notes}"


def source_uses(inputs: Iterable[Input], *, base: Path, look_inside: bool = False) -> list[SourceUse]:
    """Return the use of each source with files, in the order of the inputs.

    Files that are missing or not downloaded yet are skipped; the checks before a run report them. With `look_inside`,
    files are opened to leave out those without content and to count documents and rows.
    """
    uses: dict[str, SourceUse] = {}
    for item in inputs:
        if item.source.builtin is not None:
            continue
        try:
            use = _use(item, base)
            if look_inside:
                use = _look_inside(use, item, base)
            if getattr(item, "task", "bpb") == "conversations":
                use = _name_form(use, item.source, base, is_planning=not look_inside)
        except (PreflightError, StageError):
            continue
        use = replace(use, is_local=item.source.uri is None)
        known = uses.get(use.source)
        uses[use.source] = use if known is None else _join(known, use)
    return list(uses.values())


def _use(item: Input, base: Path) -> SourceUse:
    source = item.source
    match item:
        case WeightedSource() | BpbSuiteSpec():
            return _use_of_documents(source, document_files(source, base=base))
        case CoreSuiteSpec():
            files = list_files(source, base=base, use="rows")
            return SourceUse(source.name, FileChoice(files.used, ()), "row")
    if TASKS[item.task].reads == "words":
        return SourceUse(source.name, list_files(source, base=base, use="text"), "row")
    split = parse_split(item.split or TASKS[item.task].eval_split)[0]
    use = SourceUse(source.name, row_files(source, split, base=base), "row")
    if isinstance(item, QuestionsSuiteSpec) and item.num_fewshot:
        shots = parse_split(item.fewshot_split)[0]
        use = _join(use, SourceUse(source.name, row_files(source, shots, base=base), "row"))
    if isinstance(item, ChoiceSuiteSpec) and item.num_fewshot:
        shots = TASKS[item.task].fewshot_split
        if has_split(source, shots, base=base):
            use = _join(use, SourceUse(source.name, row_files(source, shots, base=base), "row"))
    return use


def _use_of_documents(source: SourceSpec, files: DocumentFiles) -> SourceUse:
    """Return the use of a source of documents with a note that names the files of the validation."""
    if not files.validation:
        return SourceUse(source.name, files.choice, "document")
    names = list_names(distinct_names([file.path for file in files.validation], files.choice.paths))
    choice = files.choice.with_note(f"validation: {names}")
    held_out, trained = (sum(file.size for file in group) for group in (files.validation, files.train))
    if source.validation_shard is not None or held_out >= min(_TINY_BYTES, _TINY_SHARE * trained):
        return SourceUse(source.name, choice, "document")
    doubt = (
        f"source `{source.name}`: by the names of its files, the whole validation is {names}, {show_bytes(held_out)} "
        f"beside {show_bytes(trained)}; rename the file if it is text to train on, or set `validation`"
    )
    return SourceUse(source.name, choice, "document", doubts=(doubt,))


def _join(a: SourceUse, b: SourceUse) -> SourceUse:
    """Return both uses of a source as one. A file that only one of them leaves out is not left out."""
    used = {file.path: file for file in (*a.files.used, *b.files.used)}
    left_out = {path: why for path, why in (*a.files.left_out, *b.files.left_out) if path not in used}
    files = FileChoice(
        tuple(used[path] for path in sorted(used)),
        tuple(left_out.items()),
        tuple(dict.fromkeys((*a.files.notes, *b.files.notes))),
    )
    is_same = a.files.paths == b.files.paths and a.unit == b.unit
    doubts = tuple(dict.fromkeys((*a.doubts, *b.doubts)))
    return SourceUse(a.source, files, a.unit, a.rows if is_same else None, a.is_local and b.is_local, doubts)


def _name_form(use: SourceUse, source: SourceSpec, base: Path, *, is_planning: bool) -> SourceUse:
    """Return the use of chat data with the form of its rows as a note, if that is known."""
    from nanochat.tasks.chat_forms.form_names import chat_form  # imported late: few recipes plan with chats

    try:
        form = chat_form(source, use.files.paths, base=base, is_planning=is_planning)
    except (PreflightError, StageError, ValueError, OSError):
        return use  # a damaged file, which the checks before a run report
    return use if form is None else replace(use, files=use.files.with_note(f"chats: {form}"))


def _look_inside(use: SourceUse, item: Input, base: Path) -> SourceUse:
    """Return the use without the files that have no content, and with the number of documents or rows."""
    if isinstance(item, CoreSuiteSpec) or TASKS[getattr(item, "task", "bpb")].reads == "words":
        return use
    source = item.source
    parts_of = parts_by_file(use.files.paths, base=base)

    def reason_of(path: Path) -> str | None:
        try:
            if use.unit == "document":
                return why_without_text(parts_of[path], source.column)
            return None if any(has_rows(part) for part in parts_of[path]) else EMPTY
        except StageError:
            return None  # a bad row, which its reader counts

    files = with_content(use.files, reason_of)
    parts = [part for path in files.paths for part in parts_of[path]]
    if sum(part.path.stat().st_size for part in parts if reader_of(part.path) != "parquet") > _COUNTED_BYTES:
        return replace(use, files=files)
    max_chars = source.max_document_chars or TXT_DOCUMENT_CHARS
    return replace(use, files=files, rows=sum(count_texts(part, max_chars) for part in parts))
