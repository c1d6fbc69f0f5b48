"""The only YAML reader: strict YAML 1.2 in, a tree of located nodes out.

What YAML can do beyond maps, lists and scalars is refused with a reason: tags, merge keys, several documents,
repeated keys, aliases that run in a circle or multiply. Nothing in a file can run code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from nanochat.recipe.source.diagnostics import Diagnostic, Origin, Text
from nanochat.recipe.source.scalars import Scalar, resolve_scalar
from nanochat.recipe.source.syntax_errors import explain_syntax_error

MAX_BYTES = 2**18
MAX_DEPTH = 64
MAX_NODES = 5_000
_MAX_DIGITS = 40

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_NEVER_IN_A_VALUE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Node:
    """A value and where it was written. A block map or list that belongs to a key has the key's origin."""

    value: Scalar | dict[str, Entry] | tuple[Node, ...]
    origin: Origin


@dataclass(frozen=True)
class Entry:
    """A key of a map, and the value under it."""

    key: Origin
    node: Node


@dataclass(frozen=True)
class Reading:
    """What came of a text: the tree (None where it could not be built), and what was wrong."""

    node: Node | None
    diagnostics: tuple[Diagnostic, ...]


class Refused(Exception):  # noqa: N818 -- never leaves the room; carries the finding
    """Reading cannot go on."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        self.diagnostic = diagnostic
        super().__init__(diagnostic.message)


def read_yaml(text: Text, *, skip: int = 0) -> Reading:
    """Return the tree of one YAML document.

    `skip` characters of a one-line text are not YAML (the key of a `--set` flag); columns count them.
    """
    builder = _Builder(text, skip)
    try:
        node = builder.document()
    except Refused as refused:
        return Reading(None, (*builder.diagnostics, refused.diagnostic))
    return Reading(node, tuple(builder.diagnostics))


class _TooDeepError(yaml.YAMLError):
    def __init__(self, mark: yaml.Mark) -> None:
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """Stops at too many brackets: the scanner looks 1024 characters ahead, in time quadratic in their depth."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 -- the name in the base class
        if self.flow_level >= MAX_DEPTH:
            raise _TooDeepError(self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


@dataclass(frozen=True)
class _Anchor:
    """A node that may be repeated: None while it is still being read. Sizes count what an alias would expand to."""

    node: Node | None
    nodes: int = 0
    height: int = 0


class _Builder:
    """Builds the tree from the parser's events; counts nodes as aliases expand them."""

    def __init__(self, text: Text, skip: int) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._text = text
        self._skip = skip
        self._anchors: dict[str, _Anchor] = {}
        self._nodes = 0
        self._height = 0

    def document(self) -> Node:
        self._check_characters()
        self._events = self._parse()
        self._next()
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            raise self._refuse("empty", "there is nothing here", Origin(self._text, 1, 1))
        assert isinstance(event, yaml.DocumentStartEvent)
        if event.version is not None and event.version != (1, 2):
            raise self._refuse("yaml-syntax", "recipes are YAML 1.2", self._origin(event), "drop the %YAML line")
        node = self._node(self._next(), 0)
        self._next()
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            help_ = "a file holds one recipe; give each recipe a file of its own, and use `extends` to share"
            raise self._refuse("several-documents", "a second document begins here", self._origin(event), help_)
        return node

    def _parse(self) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(self._text.content[self._skip :], Loader=_Loader)
        except _TooDeepError as error:
            raise self._too_deep(self._at(error.mark.line, error.mark.column)) from None
        except yaml.MarkedYAMLError as error:
            mark, message, help_ = explain_syntax_error(error, self._line_at)
            raise self._refuse("yaml-syntax", message, self._at(mark.line, mark.column), help_) from None

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        assert isinstance(event, yaml.NodeEvent)
        is_leaf = isinstance(event, yaml.ScalarEvent)
        self._count(1, depth if is_leaf else depth + 1, event)
        anchor, before, outer = event.anchor, self._nodes, self._height
        if anchor is not None:
            self._anchors[anchor] = _Anchor(None)
        self._height = depth if is_leaf else depth + 1
        self._refuse_tag(event)
        node = self._content(event, depth)
        if anchor is not None:
            self._anchors[anchor] = _Anchor(node, self._nodes - before + 1, self._height - depth)
        self._height = max(self._height, outer)
        return node

    def _content(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            return Node(self._scalar(event), self._origin(event))
        if isinstance(event, yaml.MappingStartEvent):
            return self._map(event, depth)
        assert isinstance(event, yaml.SequenceStartEvent)
        items = []
        while not isinstance(item := self._next(), yaml.SequenceEndEvent):
            items.append(self._node(item, depth + 1))
        return Node(tuple(items), self._collection_origin(event, item))

    def _map(self, event: yaml.MappingStartEvent, depth: int) -> Node:
        entries: dict[str, Entry] = {}
        while not isinstance(key := self._next(), yaml.MappingEndEvent):
            origin = self._origin(key)
            name = self._key(key, origin, depth)
            first_event = self._next()
            node = self._node(first_event, depth + 1)
            if isinstance(first_event, yaml.CollectionStartEvent) and not first_event.flow_style:
                node = Node(node.value, origin)
            if name is None:
                continue
            if name in entries:
                first = entries[name].key
                help_ = f"first given at line {first.line}, column {first.column}; keep one of them"
                self._note("duplicate-key", f"`{name}` is given twice in the same map", origin, help_)
            else:
                entries[name] = Entry(origin, node)
        return Node(entries, self._collection_origin(event, key))

    def _key(self, event: yaml.Event, origin: Origin, depth: int) -> str | None:
        """Return the key as text, or None after noting why it cannot be one."""
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, depth + 1)
            self._note("yaml-feature", "a key must be a word", origin)
            return None
        self._count(1, depth, event)
        self._refuse_tag(event)
        if event.anchor is not None:
            self._note("yaml-feature", "an anchor belongs on a value, not on a key", origin)
        if event.implicit[0] and event.value == "<<":
            help_ = "use `extends` for another file, or write the fields out"
            self._note("yaml-feature", "merge keys (`<<`) are not part of YAML 1.2", origin, help_)
            return None
        if event.implicit[0] and event.value == "":
            self._note("yaml-syntax", "there is no key before this `:`", origin)
            return None
        return self._text_value(event.value, origin)

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        origin = self._origin(event)
        if not event.implicit[0]:
            return self._text_value(event.value, origin)
        if len(event.value) > _MAX_DIGITS and re.fullmatch(r"[-+]?\.?[0-9][-+.0-9a-fA-FxoX]*", event.value):
            self._note("out-of-range", f"a number of {len(event.value)} digits is too long", origin)
            return 0
        return resolve_scalar(event.value)

    def _text_value(self, value: str, origin: Origin) -> str:
        if _NEVER_IN_A_VALUE.search(value):
            self._note("yaml-syntax", "text may hold neither NUL nor half a surrogate pair", origin)
            return _NEVER_IN_A_VALUE.sub("", value)
        return value

    def _alias(self, event: yaml.AliasEvent, depth: int) -> Node:
        origin = self._origin(event)
        anchor = self._anchors.get(event.anchor or "")
        if anchor is None:
            raise self._refuse("yaml-syntax", f"there is no anchor `&{event.anchor}` before this", origin)
        if anchor.node is None:
            raise self._refuse("yaml-feature", f"`*{event.anchor}` would contain itself", origin)
        self._count(anchor.nodes, depth + anchor.height, event)
        self._height = max(self._height, depth + anchor.height)
        return anchor.node

    def _count(self, nodes: int, depth: int, event: yaml.Event) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._refuse("too-large", f"more than {MAX_NODES} values, aliases counted", self._origin(event))
        if depth > MAX_DEPTH:
            raise self._too_deep(self._origin(event))

    def _refuse_tag(self, event: yaml.NodeEvent) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            help_ = "drop the tag; put quotes around text that looks like a number"
            self._note("yaml-feature", f"tags (here `{tag}`) are not allowed in recipes", self._origin(event), help_)

    def _check_characters(self) -> None:
        for number, line in enumerate(self._text.lines, start=1):
            if found := _UNPRINTABLE.search(line):
                what = f"the character U+{ord(found[0]):04X} is not allowed in YAML"
                raise self._refuse("yaml-syntax", what, Origin(self._text, number, found.start() + 1))

    def _origin(self, event: yaml.Event) -> Origin:
        start, end = _marks(event)
        start_at = self._at(start.line, start.column)
        line = self._text.line(start_at.line)
        width = end.column - start.column if end.line == start.line else len(line.rstrip()) - start.column
        return Origin(self._text, start_at.line, start_at.column, max(width, 1))

    def _collection_origin(self, start: yaml.Event, end: yaml.Event) -> Origin:
        origin = self._origin(start)
        first, last = _marks(start)[0], _marks(end)[1]
        if first.line == last.line:
            return Origin(self._text, origin.line, origin.column, last.column - first.column)
        return origin

    def _at(self, line: int, column: int) -> Origin:
        return Origin(self._text, line + 1, column + 1 + (self._skip if line == 0 else 0))

    def _line_at(self, mark: yaml.Mark) -> tuple[str, str]:
        """Return the line before and from `mark` on."""
        origin = self._at(mark.line, mark.column)
        line = self._text.line(origin.line)
        return line[: origin.column - 1], line[origin.column - 1 :]

    def _too_deep(self, origin: Origin) -> Refused:
        return self._refuse("too-deep", f"nested more than {MAX_DEPTH} levels deep", origin)

    def _note(self, code: str, message: str, origin: Origin, help_: str = "") -> None:
        self.diagnostics.append(Diagnostic(code, message, origin, help_))

    def _refuse(self, code: str, message: str, origin: Origin, help_: str = "") -> Refused:
        return Refused(Diagnostic(code, message, origin, help_))


def _marks(event: yaml.Event) -> tuple[yaml.Mark, yaml.Mark]:
    start, end = event.start_mark, event.end_mark
    assert isinstance(start, yaml.Mark) and isinstance(end, yaml.Mark), "the parser marks every event"
    return start, end
