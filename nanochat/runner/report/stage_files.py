"""Reads the notes, data and samples for a report from the folders of a run's stages. Damaged files are left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from nanochat.runner.store.run_catalog import Run
from nanochat.runner.store.verification import damage_to_read
from nanochat.stages.process.context import NOTE_PREFIX
from nanochat.storage.layout import StageFolder

_SAMPLE_CHARS = 12_000
_MAX_NOTES = 30


def readable_folders(run: Run, base: Path) -> dict[str, StageFolder]:
    """Return the folders of the stages without those that hold no result of this run."""
    lost = run.lost(base)
    return {stage: folder for stage, folder in run.folders(base).items() if stage not in lost}


def damaged_files(run: Run, base: Path) -> dict[Path, str]:
    """Return the files that a report shows and that are not as their stages wrote them, with what is wrong."""
    damaged, folders = {}, run.folders(base)
    for stage, record in run.records(base).items():
        folder = folders[stage]
        for path in (folder.metrics, folder.sources, folder.samples):
            if (damage := damage_to_read(folder, record, path)) is not None:
                damaged[path] = damage
    return damaged


def stage_notes(folders: Mapping[str, StageFolder]) -> dict[str, list[str]]:
    """Return the notes in the log of each stage, each once."""
    notes = {}
    for stage, folder in folders.items():
        if folder.log.is_file():
            lines = folder.log.read_text(encoding="utf-8", errors="replace").splitlines()
            marked = [line.removeprefix(NOTE_PREFIX) for line in lines if line.startswith(NOTE_PREFIX)]
            notes[stage] = list(dict.fromkeys(marked))[:_MAX_NOTES]
    return notes


def source_lines(folders: Mapping[str, StageFolder], damaged: Collection[Path]) -> list[str]:
    """Return the lines that stages wrote about the files they read, each line once with the names of its stages."""
    stages: dict[str, list[str]] = {}
    for stage, folder in folders.items():
        if folder.sources.is_file() and folder.sources not in damaged:
            for line in json.loads(folder.sources.read_text(encoding="utf-8")):
                stages.setdefault(line, []).append(stage)
    return [f"{line} (read by {', '.join(names)})" for line, names in stages.items()]


def sample_texts(folders: Mapping[str, StageFolder], damaged: Collection[Path]) -> dict[str, str]:
    """Return the text that the model of each stage wrote, shortened if it is long."""
    samples = {}
    for stage, folder in folders.items():
        if folder.samples.is_file() and folder.samples not in damaged:
            text = folder.samples.read_text(encoding="utf-8").strip()
            samples[stage] = text[:_SAMPLE_CHARS] + ("\n\n(shortened)" if len(text) > _SAMPLE_CHARS else "")
    return samples
