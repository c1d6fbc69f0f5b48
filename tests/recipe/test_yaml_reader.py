"""The YAML reader reads YAML 1.2 values with their places, and refuses other features."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nanochat.recipe.merge.tree import origins_of, plain
from nanochat.recipe.parsing.diagnostics import Text
from nanochat.recipe.parsing.scalars import resolve_scalar
from nanochat.recipe.parsing.yaml_reader import read_yaml

# From the tables of YAML 1.2.2, section 10.3.2 (core schema).
SCALARS = [
    ("", None), ("~", None), ("null", None), ("NULL", None), ("true", True), ("FALSE", False), ("0", 0), ("-19", -19),
    ("+12", 12), ("010", 10), ("0o14", 12), ("0x3A", 58), ("1e-4", 1e-4), ("1e5", 1e5), ("1E+3", 1000.0), ("0.", 0.0),
    (".5", 0.5), ("-0.0", -0.0), ("12e03", 12000.0), ("+.inf", math.inf), ("-.INF", -math.inf),
]  # fmt: skip
# YAML 1.1 reads many of these as booleans, octal, binary or base-60 numbers, dates or special values. The last one is
# a digit, but not ASCII.
TEXTS = [
    "nULL", "tRUE", "yes", "no", "on", "y", "-0x3A", "0b11", "1_000", "12:30", "12:30:45", "2024-01-01", ".", "1e",
    "e5", "1.2.3", "20M", "<<", "=", "٣",
]  # fmt: skip


@pytest.mark.parametrize(("written", "value"), SCALARS + [(text, text) for text in TEXTS])
def test_a_plain_scalar_means_what_yaml_1_2_says(written, value):
    resolved = resolve_scalar(written)
    assert (type(resolved), resolved) == (type(value), value)


def test_nan_is_a_number():
    assert math.isnan(resolve_scalar(".nan"))


def test_quoted_scalars_are_text():
    assert _plain('["1", \'null\', "true", 1, null]') == ("1", "null", "true", 1, None)


def test_keys_are_text_as_written():
    assert _plain("{no: 1, 1: 2, 1e3: 3, null: 4}") == {"no": 1, "1": 2, "1e3": 3, "null": 4}


def test_each_value_and_key_has_its_line_and_column():
    """The places are counted by hand, from 1."""
    node = _read("a: 1\nb:\n  - x\n  - {c: 'y'}\n")[0]
    values, keys = origins_of(node)
    places = {path: (origin.line, origin.column, origin.length) for path, origin in values.items()}
    assert places == {
        (): (1, 1, 1),
        ("a",): (1, 4, 1),
        ("b",): (2, 1, 1),
        ("b", 0): (3, 5, 1),
        ("b", 1): (4, 5, 8),
        ("b", 1, "c"): (4, 9, 3),
    }
    assert (keys["b", 1, "c"].line, keys["b", 1, "c"].column) == (4, 6)


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_lines_are_counted_with_any_line_break(line_break):
    node = _read(f"a: 1{line_break}{line_break}b: 2")[0]
    assert origins_of(node)[1]["b",].line == 3


def test_an_alias_repeats_its_anchor():
    assert _plain("a: &x {b: 1}\nc: *x") == {"a": {"b": 1}, "c": {"b": 1}}


def test_aliases_that_expand_to_too_many_values_are_refused():
    """Nine levels of nine aliases would expand to 387 million values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert _codes("\n".join(lines)) == ["too-large"]


def test_aliases_that_nest_too_deeply_are_refused():
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 80)]
    assert _codes("\n".join(lines)) == ["too-deep"]
    assert _codes("\n".join(lines[:60])) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: &x [*x]", "yaml-feature"),
        ("&x a: *x", "yaml-feature"),
        ("a: !!python/name:os.system x", "yaml-feature"),
        ("a: ! x", "yaml-feature"),
        ("%TAG ! tag:x,2000:\n---\na: !y x", "yaml-feature"),
        ("a: 1\n---\nb: 2", "several-documents"),
        ("a: 1\n...\nb: 2", "yaml-syntax"),
        ("", "empty"),
        ("[" * 65 + "]" * 65, "too-deep"),
        ("a: 1\na: 2", "duplicate-key"),
        ("{a: 1, 'a': 2}", "duplicate-key"),
        ('a: "\\0"', "yaml-syntax"),
        ("a: \x1b[31m", "yaml-syntax"),
    ],
)
def test_features_that_recipes_do_not_need_are_refused(text, code):
    assert _codes(text)[0] == code


def test_sixty_four_levels_are_accepted():
    assert _codes("[" * 64 + "]" * 64) == []


def _read(text):
    return read_yaml(Text("test.yaml", text, Path()))


def _plain(text):
    node, diagnostics = _read(text)
    assert diagnostics == [], diagnostics
    return plain(node)


def _codes(text):
    return [diagnostic.code for diagnostic in _read(text)[1]]
