"""Values arrive on the other side as equal values of the same types, and nothing else arrives."""

from __future__ import annotations

import collections
import copy
import enum
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.tools.sandbox.plain_data import dump, load, update

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())  # lone surrogates too
    | st.binary()
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.frozensets(inner, max_size=4) | st.tuples(inner, inner), max_leaves=8)
VALUES = st.recursive(
    HASHABLE | st.binary().map(bytearray) | st.integers(-9, 9).map(range),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
    ),
    max_leaves=20,
)
TEXTS = st.text(max_size=5) | st.sampled_from(["int", "dict", "range", "set", "bytes", "complex", "iterator", "0x1"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=10,
)


def is_same(a: object, b: object) -> bool:
    """Return whether values are equal, and of equal types all the way down."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, list | tuple):
        return all(is_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return all(is_same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    return not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b)


@given(VALUES)
def test_values_arrive_as_they_were(value):
    assert is_same(load(dump(value)), value)


def test_unusual_values_arrive_as_they_were():
    for value in (10**10_000, -(2**63), math.inf, -0.0, "\ud800", [[]] * 3, {(1, "a"): {2: None}}):
        assert is_same(load(dump(value)), value)


def test_nan_arrives():
    assert math.isnan(load(dump(math.nan)))


Pair = collections.namedtuple("Pair", "a b")
Colour = enum.IntEnum("Colour", "RED")


class Anything(list):
    def __eq__(self, other):
        return True


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (Pair(1, 2), (1, 2)),
        (Colour.RED, 1),
        (Anything([1]), [1]),
    ],
)
def test_an_instance_of_a_subclass_arrives_as_its_base_type(value, plain):
    assert is_same(load(dump(value)), plain)


def test_iterators_arrive_as_iterators():
    """They have all their items, but are neither lists nor equal to them."""
    arrived = load(dump(n * n for n in range(4)))
    assert arrived != [0, 1, 4, 9]
    assert next(arrived) == 0
    assert list(arrived) == [1, 4, 9]


@pytest.mark.parametrize("value", [object(), len, type, [lambda: 1], {"a": ...}, memoryview(b"")])
def test_other_types_do_not_cross(value):
    with pytest.raises(TypeError, match="cannot pass between program and tests"):
        dump(value)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_hostile_bytes_are_a_value_or_an_error(data):
    """No bytes raise anything but a ValueError, and what they give can be sent again."""
    try:
        value = load(data)
    except ValueError:
        return
    dump(value)


@given(VALUES, VALUES)
def test_update_makes_containers_equal(old, new):
    """Lists, dictionaries, sets and bytearrays take the new content; nothing else can change in place."""
    old, before = copy.deepcopy(old), old
    update(old, copy.deepcopy(new))
    if type(old) is type(new) and isinstance(old, list | dict | set | bytearray):
        assert old == new
    elif not isinstance(old, tuple):
        assert old == before


def test_update_reaches_containers_that_others_hold():
    """As in one process, a list inside an argument is still the same list after the call."""
    inner, table = [1], {"a": [2]}
    update([inner, 3, (table,)], [[1, 5], 4, ({"a": [2, 6], "b": 7},)])
    assert inner == [1, 5]
    assert table == {"a": [2, 6], "b": 7}
