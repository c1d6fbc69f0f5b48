"""Reads YAML 1.2 strictly into a tree in which every key and value knows its line and column.

Other features than maps, lists, scalars and aliases are refused with a reason: tags, merge keys, several documents,
repeated keys, and aliases that contain themselves or expand to too many values. Nothing in a file can run code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from nanochat.recipe.parsing.diagnostics import Diagnostic, LocatedRecipeError, Origin, Text, refusal
from nanochat.recipe.parsing.nodes import Entry, Node
from nanochat.recipe.parsing.scalars import NUMBER, Scalar, resolve_scalar
from nanochat.recipe.parsing.syntax_errors import explain_syntax_error

MAX_BYTES = 2**18
MAX_DEPTH = 64
MAX_NODES = 5_000
_MAX_DIGITS = 40
_TOO_DEEP = f"the recipe is nested more than {MAX_DEPTH} levels deep"

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_NEVER_IN_A_VALUE = re.compile("[\x00\ud800-\udfff]")


def read_yaml(text: Text, *, skip: int = 0) -> tuple[Node | None, list[Diagnostic]]:
    """Return the tree of a YAML document, or None if it could not be built, and the errors.

    The first `skip` characters of a `--set` flag are not YAML, but count as columns.
    """
    builder = _Builder(text, skip)
    try:
        node = builder.document()
    except LocatedRecipeError as error:
        return None, [*builder.diagnostics, *error.diagnostics]
    return node, builder.diagnostics


class _TooDeepError(yaml.YAMLError):
    def __init__(self, mark: yaml.Mark) -> None:
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """A loader that stops at too many open brackets, because the scanner's time is quadratic in their number."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 -- the name in the base class
        if self.flow_level >= MAX_DEPTH:
            raise _TooDeepError(self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


@dataclass(frozen=True)
class _Anchor:
    """A node that aliases can repeat, or None while it is being read. `nodes` and `height` count expanded aliases."""

    node: Node | None
    nodes: int = 0
    height: int = 0


class _Builder:
    """Builds the tree from the parser's events, and counts nodes as if aliases were written out."""

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
        next(self._events)
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise refusal("empty", "the recipe is empty", Origin(self._text, 1, 1))
        assert isinstance(event, yaml.DocumentStartEvent)
        if event.version is not None and event.version != (1, 2):
            origin = self._origin(event)
            raise refusal("yaml-syntax", "recipes are written in YAML 1.2", origin, "remove the %YAML line")
        node = self._node(next(self._events), 0)
        next(self._events)
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            help_ = "write each recipe into its own file, and use `extends` to share sections"
            message = "a second document starts here, but a file contains a single recipe"
            raise refusal("several-documents", message, self._origin(event), help_)
        return node

    def _parse(self) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(self._text.content[self._skip :], Loader=_Loader)
        except _TooDeepError as error:
            raise refusal("too-deep", _TOO_DEEP, self._at(error.mark.line, error.mark.column)) from None
        except yaml.MarkedYAMLError as error:
            mark, message, help_ = explain_syntax_error(error, self._line_at)
            raise refusal("yaml-syntax", message, self._at(mark.line, mark.column), help_) from None

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
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(item, depth + 1))
        return Node(tuple(items), self._collection_origin(event, item))

    def _map(self, event: yaml.MappingStartEvent, depth: int) -> Node:
        entries: dict[str, Entry] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            origin = self._origin(key)
            name = self._key(key, origin, depth)
            first_event = next(self._events)
            node = self._node(first_event, depth + 1)
            if isinstance(first_event, yaml.CollectionStartEvent) and not first_event.flow_style:
                node = Node(node.value, origin)
            if name is None:
                continue
            if name in entries:
                first = entries[name].key
                help_ = f"the first is at line {first.line}, column {first.column}; remove one of them"
                self._report("duplicate-key", f"`{name}` appears twice in the same map", origin, help_)
            else:
                entries[name] = Entry(origin, node)
        return Node(entries, self._collection_origin(event, key))

    def _key(self, event: yaml.Event, origin: Origin, depth: int) -> str | None:
        """Return the key as text, or report why it is not a valid key and return None."""
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, depth + 1)
            self._report("yaml-feature", "a key must be text, not a map or a list", origin)
            return None
        self._count(1, depth, event)
        self._refuse_tag(event)
        if event.anchor is not None:
            self._report("yaml-feature", "an anchor belongs on a value, not on a key", origin)
        if event.implicit[0] and event.value == "<<":
            help_ = "use `extends` to share fields between files, or repeat the fields"
            self._report("yaml-feature", "merge keys (`<<`) are not part of YAML 1.2", origin, help_)
            return None
        if event.implicit[0] and event.value == "":
            self._report("yaml-syntax", "there is no key before this `:`", origin)
            return None
        return self._text_value(event.value, origin)

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        origin = self._origin(event)
        if not event.implicit[0]:  # the scalar is in quotes
            return self._text_value(event.value, origin)
        if len(event.value) > _MAX_DIGITS and NUMBER.match(event.value):
            self._report("out-of-range", f"this number is too long ({len(event.value)} digits)", origin)
            return 0
        return resolve_scalar(event.value)

    def _text_value(self, value: str, origin: Origin) -> str:
        if _NEVER_IN_A_VALUE.search(value):
            self._report("yaml-syntax", "text cannot contain NUL characters or unpaired surrogates", origin)
            return _NEVER_IN_A_VALUE.sub("", value)
        return value

    def _alias(self, event: yaml.AliasEvent, depth: int) -> Node:
        origin = self._origin(event)
        anchor = self._anchors.get(event.anchor or "")
        if anchor is None:
            raise refusal("yaml-syntax", f"there is no anchor `&{event.anchor}` above this alias", origin)
        if anchor.node is None:
            raise refusal("yaml-feature", f"`*{event.anchor}` contains itself", origin)
        self._count(anchor.nodes, depth + anchor.height, event)
        self._height = max(self._height, depth + anchor.height)
        return anchor.node

    def _count(self, nodes: int, depth: int, event: yaml.Event) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            message = f"the recipe has more than {MAX_NODES} values, counting expanded aliases"
            raise refusal("too-large", message, self._origin(event))
        if depth > MAX_DEPTH:
            raise refusal("too-deep", _TOO_DEEP, self._origin(event))

    def _refuse_tag(self, event: yaml.NodeEvent) -> None:
        if (tag := getattr(event, "tag", None)) is not None:
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            help_ = "remove the tag; put text that looks like a number in quotes"
            self._report("yaml-feature", f"tags (here `{tag}`) are not allowed in recipes", self._origin(event), help_)

    def _check_characters(self) -> None:
        for number, line in enumerate(self._text.lines, start=1):
            if match := _UNPRINTABLE.search(line):
                message = f"the character U+{ord(match[0]):04X} is not allowed in YAML"
                raise refusal("yaml-syntax", message, Origin(self._text, number, match.start() + 1))

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
        """Return the parts of the line before and after `mark`."""
        origin = self._at(mark.line, mark.column)
        line = self._text.line(origin.line)
        return line[: origin.column - 1], line[origin.column - 1 :]

    def _report(self, code: str, message: str, origin: Origin, help_: str = "") -> None:
        self.diagnostics.append(Diagnostic(code, message, origin, help_))


def _marks(event: yaml.Event) -> tuple[yaml.Mark, yaml.Mark]:
    start, end = event.start_mark, event.end_mark
    assert isinstance(start, yaml.Mark) and isinstance(end, yaml.Mark), "the parser marks every event"
    return start, end
