"""The text of an html page as a browser shows it: without scripts and styles, with a line for each block.

Not here: the layout. Nothing is hidden or moved by style sheets, and pictures have no text.
"""

from __future__ import annotations

import codecs
import re
from html.parser import HTMLParser

_INVISIBLE = frozenset(
    ("audio", "canvas", "iframe", "noscript", "object", "script", "style", "svg", "template", "title", "video")
)
_PARAGRAPHS = frozenset(
    (
        *(
            "article",
            "aside",
            "blockquote",
            "body",
            "details",
            "dl",
            "fieldset",
            "figure",
            "footer",
            "form",
            "h1",
            "h2",
        ),
        *("h3", "h4", "h5", "h6", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table", "ul"),
    )
)
"""Elements with an empty line before and after them."""
_LINES = frozenset(
    ("address", "br", "caption", "dd", "div", "dt", "figcaption", "legend", "li", "option", "summary", "tr")
)
"""Elements that begin and end a line."""
_CELLS = frozenset(("td", "th"))
_CHARSET = re.compile(rb"""<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_CHARSET_BYTES = 1024
"""The declaration of the encoding lies within the first bytes (HTML standard, 4.2.5.4)."""
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_BLANKS = re.compile(r"[ \t\n\r\f]+")


def html_text(content: bytes) -> str:
    """Return the text of a page, which ends with a line end; empty if the page has no text.

    Raises:
        ValueError: the page cannot be decoded or parsed. The message says why.
    """
    parser = _TextParser()
    try:
        parser.feed(_decode(content))
        parser.close()
    except AssertionError as error:  # the parser's answer to broken declarations
        raise ValueError(f"not readable as html: {error}") from error
    return parser.text()


def _decode(content: bytes) -> str:
    """Return the page as text in the encoding that it declares, which is UTF-8 by default.

    A declaration of UTF-16 that is itself ASCII is wrong, and means UTF-8 (HTML standard, 13.2.3.2).
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return decode_as(content[len(mark) :], encoding)
    declared = _CHARSET.search(content[:_CHARSET_BYTES])
    encoding = declared[1].decode() if declared is not None else "utf-8"
    return decode_as(content, "utf-8" if encoding.lower().startswith(("utf-16", "utf-32")) else encoding)


def decode_as(content: bytes, encoding: str) -> str:
    """Return a page as text. A ValueError says that it is not in this encoding, or that there is no such encoding."""
    try:
        name = codecs.lookup(encoding).name
        # The HTML standard reads these two labels as Windows-1252, which contains them.
        return content.decode("cp1252" if name in ("iso8859-1", "ascii") else name)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {encoding} at byte {error.start + 1}") from error
    except LookupError as error:
        raise ValueError(f"its encoding `{encoding}` is unknown") from error


class _TextParser(HTMLParser):
    """Collects the text of a page. Runs of white space become one space, except in `pre` elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._invisible: list[str] = []
        self._pre_depth = 0
        self._begins_pre = False
        # What separates the text so far from the next text: line ends, or else a space or a tab.
        self._line_ends = 0
        self._blank = ""

    def text(self) -> str:
        return "".join(self._parts) + "\n" if self._parts else ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _INVISIBLE:
            self._invisible.append(tag)
        self._separate(tag)
        self._pre_depth += tag == "pre"
        self._begins_pre = tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._invisible:
            del self._invisible[self._invisible.index(tag) :]
        self._pre_depth -= tag == "pre" and self._pre_depth > 0
        if tag not in _CELLS and tag != "br":
            self._separate(tag)

    def handle_data(self, data: str) -> None:
        if self._invisible:
            return
        if self._pre_depth:
            data = data.removeprefix("\n") if self._begins_pre else data
            self._begins_pre = False
            self._write(data.rstrip("\n"))
            self._line_ends += len(data) - len(data.rstrip("\n"))
            return
        text = _BLANKS.sub(" ", data)
        if text.startswith(" "):
            self._blank = self._blank or " "
        self._write(text.strip(" "))
        if text.endswith(" "):
            self._blank = self._blank or " "

    def _separate(self, tag: str) -> None:
        if self._invisible:
            return
        if tag == "br":
            self._line_ends += 1
        elif tag in _PARAGRAPHS:
            self._line_ends = max(self._line_ends, 2)
        elif tag in _LINES:
            self._line_ends = max(self._line_ends, 1)
        elif tag in _CELLS:
            self._blank = "\t"

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._parts:
            self._parts.append("\n" * self._line_ends or self._blank)
        self._parts.append(text)
        self._line_ends, self._blank = 0, ""
