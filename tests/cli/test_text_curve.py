"""A curve of characters: braille dots, whose bits are known."""

from __future__ import annotations

import pytest

from nanochat.cli.text_curve import draw_curve


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """Return the column and the row of each dot; U+2800 to U+28FF number the dots 1237 4568 from the lowest bit."""
    places = {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1), 5: (1, 2), 6: (0, 3), 7: (1, 3)}
    found = set()
    for row, line in enumerate(lines):
        for column, character in enumerate(line.partition("│")[2]):
            bits = ord(character) - 0x2800
            found |= {(2 * column + x, 4 * row + y) for bit, (x, y) in places.items() if bits >> bit & 1}
    return found


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right():
    lines = draw_curve(range(8), [7, 6, 5, 4, 3, 2, 1, 0], width=15, height=2)
    assert dots(lines[:2]) == {(i, i) for i in range(8)}
    assert [line[8:11] for line in lines] == ["7 │", "0 │", "  └"] and lines[2][10:].startswith("└step 0")


def test_each_step_has_a_column_if_there_is_room():
    lines = draw_curve([0, 1, 2, 3], [4, 0, 0, 0], width=13, height=2)
    assert {x for x, _ in dots(lines[:2])} == {0, 1, 2, 3} and lines[0][8:].startswith("4 │")


def test_steps_that_share_a_column_are_averaged():
    lines = draw_curve(range(4), [4, 2, 1, 1], width=12, height=2)
    assert [line[8:11] for line in lines[:2]] == ["3 │", "1 │"]


@pytest.mark.parametrize(("steps", "values"), [([], []), ([3], [1.0]), ([3, 3], [1.0, 2.0])])
def test_there_is_no_curve_of_a_single_step(steps, values):
    assert draw_curve(steps, values, width=40, height=5) == []


def test_a_constant_line_is_drawn():
    assert dots(draw_curve([0, 1], [2.0, 2.0], width=20, height=3)[:3]) != set()
