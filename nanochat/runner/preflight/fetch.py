"""Downloads and converts the data that stages read, at the beginning of a run or for `nanochat-run fetch`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from nanochat.data.ingest.pending import convertible_files, is_ready
from nanochat.data.ingest.store import copy_folders, unconverted_files
from nanochat.data.sources.source_downloads import download_folder, fetch, find_damage
from nanochat.errors import InterruptedRun, PreflightError
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_bytes
from nanochat.recipe.load import load_recipe
from nanochat.runner.display import Display
from nanochat.runner.preflight.data_checks import check_inputs
from nanochat.runner.preflight.hub_pins import pin_sources
from nanochat.runner.preflight.prepare import prepare
from nanochat.runner.process.convert_sources import convert_files
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store.needed_data import add_needed, fetched_list
from nanochat.runtime import check_base_dir


def fetch_recipe(recipe: Path, overrides: Sequence[str], *, base: Path, display: Display) -> None:
    """Bring the data of all stages onto this machine, and check them as a run would.

    Raises:
        RecipeError: the recipe is not valid.
        PreflightError: the base folder cannot be written, or an input is missing, cannot be downloaded or does not have
            the format that its stage reads.
        StageError: a file that is to be converted is damaged.
        InterruptedRun: a signal arrived. The same command continues.
    """
    loaded = load_recipe(recipe, overrides)
    check_base_dir(base)
    if pinned := pin_sources(loaded, base):
        display.log_line(pinned)
    prepared = prepare(loaded, base)
    if prepared.problems:
        raise PreflightError("\n".join(prepared.problems))
    stages = prepared.plan.stages
    with Interrupts(display.clear_progress) as interrupts:
        needed = fetched_list(loaded.path, base=base)
        needed.unlink(missing_ok=True)
        add = partial(add_needed, needed, base=base, recipe=loaded.path)
        fetch_inputs(stages, base, add, display=display, interrupts=interrupts)
    if problems := check_inputs(stages, base):
        raise PreflightError("\n".join(problems))
    names = dict.fromkeys(source.name for stage in stages for source in stage.read_sources)
    display.log_line(f"all data of {prepared.plan.recipe_name} are here and can be read: {', '.join(names)}")
    display.log_line(f"to train without network: {loaded.command()} --offline")


def fetch_inputs(
    stages: Sequence[StagePlan],
    base: Path,
    add_needed: Callable[[Iterable[Path]], None],
    *,
    display: Display,
    interrupts: Interrupts,
) -> None:
    """Download and convert what the stages read, and check its format, which preflight could not do before.

    `add_needed` receives the folders with the data before they are used, so that `gc` keeps them. Raises as
    `fetch_sources` and `convert_files`, and PreflightError if a source does not have the format that its stage reads.
    """
    unchecked = [stage for stage in stages if not all(is_ready(source, base=base) for source in stage.read_sources)]
    sources = [source for stage in stages for source in stage.read_sources]
    add_needed(folder for source in sources if (folder := download_folder(source, base=base)) is not None)
    for stage in stages:
        fetch_sources(stage, base, display=display, interrupts=interrupts)
    if paths := convertible_files(sources, base=base):
        add_needed(copy_folders(paths, base=base))
        unconverted = unconverted_files(paths, base=base, are_loaded=True)
        for path, copy in zip(unconverted, copy_folders(unconverted, base=base), strict=True):
            if copy.exists():
                display.log_line(f"{path} is converted again: its copy {copy} is damaged, or of an earlier version")
        convert_files(unconverted, base, display=display, interrupts=interrupts)
    if problems := check_inputs(unchecked, base):
        raise PreflightError("\n".join(problems))


def fetch_sources(stage: StagePlan, base: Path, *, display: Display, interrupts: Interrupts) -> None:
    """Download the stage's sources that are not on disk yet. After a signal, the next attempt continues."""
    for source in stage.read_sources:

        def on_progress(done_bytes: int, total_bytes: int, name: str = source.name) -> None:
            if interrupts.count:
                raise InterruptedRun(f"stopped while downloading `{name}`, the downloaded part is kept")
            text = f"{show_bytes(done_bytes)} of {show_bytes(total_bytes)}"
            display.show_progress(f"download {name}", done_bytes / max(total_bytes, 1), text)

        offline = stage.execution.offline
        if (damage := find_damage(source, base=base, offline=offline)) is not None:
            display.log_line(f"source `{source.name}`: {damage}; downloading it again")
        fetch(source, base=base, offline=offline, progress=on_progress)
        display.clear_progress()
