"""Counts and sizes with factor letters."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.schema.values import Bytes, Count


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
def test_a_count_may_have_a_letter(written, value):
    """Powers of 1000, exactly."""
    assert TypeAdapter(Count).validate_python(written) == value


@pytest.mark.parametrize(
    "written",
    ["20m", "M", "1.0001K", "6_4_", "_1", "1__0", "-1", "1e3K", "", "٣", "1.5", 0, -1, 1.5, True, None, 10**19],
)
def test_what_is_not_a_count_is_refused(written):
    """Also zero, negative, and what does not come to a whole number."""
    with pytest.raises(ValidationError):
        TypeAdapter(Count).validate_python(written)


@pytest.mark.parametrize(
    ("written", "value"), [("16G", 16 * 2**30), ("16GiB", 16 * 2**30), ("512MB", 512 * 2**20), ("1K", 1024), ("9", 9)]
)
def test_a_size_is_in_powers_of_1024(written, value):
    """As the tools that show memory count."""
    assert TypeAdapter(Bytes).validate_python(written) == value


def test_sections_are_frozen_and_strict():
    """No field changes after validation, and text is not a number."""
    recipe = Recipe(nanochat=1, name="x")
    with pytest.raises(ValidationError):
        recipe.seed = 3
    with pytest.raises(ValidationError):
        Recipe(nanochat=1, name="x", seed="3")


@pytest.mark.parametrize("given", [{}, {"steps": 1, "tokens": 2}])
def test_exactly_one_holds_in_python_too(given):
    """A recipe built without a file is checked alike."""
    with pytest.raises(ValidationError, match="exactly one"):
        Recipe(nanochat=1, name="x", pretrain={"data": {"a": {}}, "horizon": given})
