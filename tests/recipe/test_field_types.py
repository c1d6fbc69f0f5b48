"""Counts and sizes can be written with letters, and sections are strict."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from nanochat.recipe.schema.field_types import Bytes, Count
from nanochat.recipe.schema.recipe import Recipe


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("20M", 20_000_000),
        ("1.5K", 1500),
        ("2.3K", 2300),  # 2.3 * 1000 is 2299.9999999999995 in binary
        ("0.001M", 1000),
        ("1_000_000", 1_000_000),
        ("3 B", 3_000_000_000),
        ("3G", 3_000_000_000),
        ("1T", 10**12),
        (2e9, 2_000_000_000),
        (7, 7),
    ],
)
def test_a_count_with_a_letter_is_an_exact_power_of_1000(written, value):
    assert TypeAdapter(Count).validate_python(written) == value


@pytest.mark.parametrize(
    "written",
    ["20m", "M", "1.0001K", "6_4_", "_1", "1__0", "-1", "1e3K", "", "٣", "1.5", 0, -1, 1.5, True, None, 10**19],
)
def test_a_value_that_is_not_a_positive_whole_number_is_refused_as_a_count(written):
    with pytest.raises(ValidationError):
        TypeAdapter(Count).validate_python(written)


@pytest.mark.parametrize(
    ("written", "value"), [("16G", 16 * 2**30), ("16GiB", 16 * 2**30), ("512MB", 512 * 2**20), ("1K", 1024), ("9", 9)]
)
def test_a_size_with_a_letter_is_a_power_of_1024(written, value):
    assert TypeAdapter(Bytes).validate_python(written) == value


def test_sections_are_immutable_and_strict_about_types():
    recipe = Recipe(nanochat=1, name="x")
    with pytest.raises(ValidationError):
        recipe.seed = 3
    with pytest.raises(ValidationError):
        Recipe(nanochat=1, name="x", seed="3")


@pytest.mark.parametrize("given", [{}, {"steps": 1, "tokens": 2}])
def test_exactly_one_is_checked_for_recipes_built_in_python(given):
    with pytest.raises(ValidationError, match="exactly one"):
        Recipe(nanochat=1, name="x", pretrain={"data": {"a": {}}, "horizon": given})
