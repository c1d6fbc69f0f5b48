"""Draws a curve with characters, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character, by row and column of its dots."""
_BRAILLE = 0x2800
_MARGIN = 9
"""Characters of the scale: numbers with four digits, such as 1.234e-05."""


def draw_curve(steps: Sequence[int], values: Sequence[float], *, width: int, height: int) -> list[str]:
    """Return `height` lines (at least 2) with the curve and its scale, and one with the first and the last step.

    Each column of dots shows the mean of the values whose steps fall into it. There are no lines for less than two
    values.
    """
    if len(values) < 2 or steps[0] == steps[-1]:
        return []
    columns = 2 * max(1, width - _MARGIN - 2)
    means = _means(steps, values, columns)
    low, high = min(means.values()), max(means.values())
    cells = [[0] * (columns // 2) for _ in range(height)]
    for column, mean in means.items():
        row = round((high - mean) / ((high - low) or 1.0) * (4 * height - 1))
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    lines = ["".join(chr(_BRAILLE + cell) for cell in row) for row in cells]
    scale = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    shown = [f"{label:>{_MARGIN}} │{line}" for label, line in zip(scale, lines, strict=True)]
    first, last = f"step {steps[0]:,}", f"{steps[-1]:,}"
    return [*shown, f"{'':{_MARGIN}} └{first}{last:>{max(1, columns // 2 - len(first))}}"]


def _means(steps: Sequence[int], values: Sequence[float], columns: int) -> dict[int, float]:
    sums: dict[int, list[float]] = {}
    for step, value in zip(steps, values, strict=True):
        column = (step - steps[0]) * (columns - 1) // (steps[-1] - steps[0])
        sums.setdefault(column, []).append(value)
    return {column: sum(of_column) / len(of_column) for column, of_column in sums.items()}
