"""What a model says while it trains, kept as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.stages.context import write_atomically

_HEADING = "\n## Step "


def write_samples(path: Path, step: int, texts: Sequence[str]) -> None:
    """Add a step's section to a Markdown file; sections from that step on, of before a restart, are replaced."""
    sections = _read(path) if path.exists() else {}
    kept = {at: body for at, body in sections.items() if at < step}
    kept[step] = "\n" + "\n".join(f"{indented(text)}\n" for text in texts)
    whole = "# What the model says\n" + "".join(f"{_HEADING}{at}\n{body}" for at, body in sorted(kept.items()))
    write_atomically(path, whole)


def indented(text: str) -> str:
    """Return text as an indented Markdown block, which nothing in it can end."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _read(path: Path) -> dict[int, str]:
    found = path.read_text(encoding="utf-8").split(_HEADING)[1:]
    return {int(section.split("\n", 1)[0]): section.split("\n", 1)[1] for section in found}
