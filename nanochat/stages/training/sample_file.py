"""Writes `out/samples.md`, which grows while a model trains: a section for each step with samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.stages.process.context import StageContext, indented
from nanochat.storage.files import write_text

_SAMPLE_HEADING = "\n## Step "


def write_samples(context: StageContext, step: int, texts: Sequence[str]) -> None:
    """Add a section for a step to `out/samples.md`, and drop sections of later steps, written before a restart.

    Of processes that train together, one writes.
    """
    if not context.process_group.is_writer:
        return
    path = context.folder.samples
    sections = _read_samples(path) if path.exists() else {}
    sections = {at: text for at, text in sections.items() if at < step}
    sections[step] = "\n" + "\n".join(f"{indented(text)}\n" for text in texts)
    body = "".join(f"{_SAMPLE_HEADING}{at}\n{text}" for at, text in sorted(sections.items()))
    write_text(path, f"# Samples\n{body}")


def _read_samples(path: Path) -> dict[int, str]:
    """Return the text of each section by its step."""
    sections = path.read_text(encoding="utf-8").split(_SAMPLE_HEADING)[1:]
    return {int(section.split("\n", 1)[0]): section.split("\n", 1)[1] for section in sections}
