"""The text of an xml document: its characters without the markup, with a line for each element that is not in a text.

An element is in a text if text of the surrounding element is beside it, as in `one <b>word</b>`. Attributes and
comments are not text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.entities import html5
from typing import Literal, NamedTuple
from xml.parsers import expat

from nanochat.data.files.formats.html_text import decode_as

_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)""")
_BLANKS = re.compile(r"[ \t\n\r]+")
_EMPTY_LINE = re.compile(r"\n[ \t\r]*\n")
_MAX_EXPANSION = 100
_ALWAYS_ALLOWED_CHARS = 1 << 20


def xml_text(content: bytes) -> str:
    """Return the text of a document, which ends with a line end; empty if the document has no text.

    A run of white space is an empty line if it holds one, else a space. It is kept in a CDATA section, and where
    `xml:space` says so. Entities of html, such as `&nbsp;`, are known even if the document does not declare them.

    Raises:
        ValueError: the document cannot be decoded or parsed. The message says why.
    """
    encoding = None
    if (declared := _DECLARED.match(content)) is not None and not declared[1].lower().startswith(b"utf-"):
        content, encoding = decode_as(content, declared[1].decode()).encode(), "utf-8"
    reader = _TextReader(max_chars=max(_ALWAYS_ALLOWED_CHARS, _MAX_EXPANSION * len(content)))
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.add
    parser.StartCdataSectionHandler = reader.start_verbatim
    parser.EndCdataSectionHandler = reader.end_verbatim
    parser.UseForeignDTD(True)  # so that undeclared entities are not errors
    parser.SkippedEntityHandler = reader.add_entity
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"not readable as xml: {error}") from error
    return reader.text + "\n" if reader.text else ""


class _Piece(NamedTuple):
    """A part of the text of an element: its own, own text whose white space is kept, or that of an element in it."""

    text: str
    kind: Literal["own", "verbatim", "inline", "block"]


@dataclass
class _Element:
    """An element that is being read."""

    keeps_space: bool
    pieces: list[_Piece] = field(default_factory=list)

    def joined(self) -> _Piece:
        """Return the text of the whole element."""
        inner = [piece for piece in self.pieces if piece.kind in ("inline", "block")]
        if any(piece.kind in ("own", "verbatim") and piece.text.strip() for piece in self.pieces):
            return _Piece(self._inline(), "inline")
        is_block = len(inner) > 1 or any(piece.kind == "block" for piece in inner)
        return _Piece("\n".join(piece.text for piece in inner), "block" if is_block else "inline")

    def _inline(self) -> str:
        parts: list[str] = []
        for text, kind in self.pieces:
            if kind == "block":
                parts = ["".join(parts).rstrip(" ")]
                text = f"\n{text}\n"
            elif kind == "own" and parts and parts[-1].endswith((" ", "\n")):
                text = text.removeprefix(" ")
            if text:
                parts.append(text)
        is_open_ended = self.keeps_space or {self.pieces[0].kind, self.pieces[-1].kind} == {"verbatim"}
        return "".join(parts) if is_open_ended else "".join(parts).strip(" \n")


class _TextReader:
    """Receives the events of a parser. `text` is the text of the element that ended last."""

    def __init__(self, *, max_chars: int) -> None:
        self.text = ""
        self._open: list[_Element] = []
        self._is_cdata = False
        self._chars_left = max_chars

    def start(self, _: str, attributes: dict[str, str]) -> None:
        space = attributes.get("xml:space")
        inherited = bool(self._open) and self._open[-1].keeps_space
        self._open.append(_Element(inherited if space is None else space == "preserve"))

    def end(self, _: str) -> None:
        piece = self._open.pop().joined()
        self.text = piece.text
        if self._open and piece.text:
            self._open[-1].pieces.append(piece)

    def add(self, text: str) -> None:
        self._chars_left -= len(text)
        if self._chars_left < 0:
            raise ValueError(f"its entities expand to more than {_MAX_EXPANSION} times its size")
        if self._is_cdata or self._open[-1].keeps_space:
            piece = _Piece(text, "verbatim")
        else:
            piece = _Piece(_BLANKS.sub(_shortened, text), "own")
        self._open[-1].pieces.append(piece)

    def add_entity(self, name: str, is_parameter: bool) -> None:
        if is_parameter:
            return
        if f"{name};" not in html5:
            raise ValueError(f"the entity `&{name};` is not declared")
        self.add(html5[f"{name};"])

    def start_verbatim(self) -> None:
        self._is_cdata = True

    def end_verbatim(self) -> None:
        self._is_cdata = False


def _shortened(blanks: re.Match[str]) -> str:
    return "\n\n" if _EMPTY_LINE.search(blanks[0]) else " "
