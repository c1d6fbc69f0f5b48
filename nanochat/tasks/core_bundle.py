"""CORE: reads the DCLM evaluation bundle, and renders the prompts of its problems.

The bundle has tasks (`core.yaml`), baselines (`eval_meta_data.csv`) and items (`eval_data/`). There are three types of
tasks, and solved examples precede the problem in a prompt (Li et al. 2024, "DataComp-LM"). Not here: which
tokens of a prompt are scored, and how (`nanochat.evals.core_tasks`).
"""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from nanochat.data.files.content_checks import check_file
from nanochat.data.files.formats.json_lines import json_lines
from nanochat.data.files.selection.path_patterns import literal_path
from nanochat.data.places.file_names import show, why_refused
from nanochat.data.sources.source_contents import local_paths
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error, describe
from nanochat.errors import PreflightError, StageError
from nanochat.plurals import several
from nanochat.tasks.mixture import draw_solved_examples

TASKS_FILE, BASELINES_FILE, DATA_FOLDER = "core.yaml", "eval_meta_data.csv", "eval_data"
_SHUFFLE_SEED = 1337
"""The seed in nanochat's `base_eval.py`, so that `max_problems` takes the same problems."""
CoreKind = Literal["multiple_choice", "schema", "language_modeling"]


@dataclass(frozen=True)
class CoreItem:
    """Pairs of a context and its continuation, and the index of the right pair.

    The pairs differ in the continuation (`multiple_choice`) or in the context (`schema`). `language_modeling` has one.
    """

    kind: CoreKind
    pairs: tuple[tuple[str, str], ...]
    gold: int = 0


def fewshot_indices(index: int, total: int, count: int) -> list[int]:
    """Return the numbers of the `count` other items that precede item `index` as solved examples, in order."""
    others = [other for other in range(total) if other != index]
    return draw_solved_examples(others, count, number=index)


def _solved_examples(fewshot: Sequence[CoreItem], *, delimiter: str) -> list[str]:
    """Return the solved examples as the texts that begin a prompt."""
    return [f"{delimiter.join(shot.pairs[shot.gold])}\n\n" for shot in fewshot]


def render_prompts(item: CoreItem, fewshot: Sequence[CoreItem], *, delimiter: str) -> tuple[str, ...]:
    """Return the prompts of an item: one for each pair, or for `language_modeling` without and with the continuation.

    The prompt without continuation is stripped on both sides. Nothing else is trimmed or escaped.
    """
    before = "".join(_solved_examples(fewshot, delimiter=delimiter))
    prompts = tuple(before + delimiter.join(pair) for pair in item.pairs)
    if item.kind == "language_modeling":
        return f"{before}{item.pairs[0][0]}{delimiter}".strip(), *prompts
    return prompts


@dataclass(frozen=True)
class CoreTask:
    """One task of the bundle."""

    label: str
    kind: CoreKind
    path: Path
    num_fewshot: int
    delimiter: str
    chance: float
    """Expected accuracy of a guess, as a share of 1 (the bundle has percent)."""


@dataclass(frozen=True)
class CorePrompts:
    """One rendered problem."""

    kind: CoreKind
    prompts: tuple[str, ...]
    """The prompts to compare; for `language_modeling`, the prompt without and with the continuation."""
    gold: int
    example_starts: tuple[int, ...] = ()
    """Where each solved example begins in a prompt."""


def bundle_folder(source: SourceSpec, *, base: Path) -> Path:
    """Return the folder of the unpacked bundle: a path of the source, or a folder `eval_bundle` in one of them.

    Raises:
        PreflightError: the source is not downloaded, or no path is a bundle or holds a folder `eval_bundle`.
    """
    for name in local_paths(source, base=base):
        for folder in (literal_path(name), literal_path(name) / "eval_bundle"):
            if (folder / TASKS_FILE).is_file():
                return folder
    raise PreflightError(
        f"{describe(source)}: no {TASKS_FILE} there; CORE needs the `path` of the unpacked bundle, or the `uri` of its "
        "archive"
    )


def read_bundle(folder: Path) -> tuple[CoreTask, ...]:
    """Return the tasks that `core.yaml` lists, in its order. A PreflightError says which file is missing or wrong."""
    path = folder / TASKS_FILE
    try:
        listed = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PreflightError(f"{path}: cannot be read ({error})") from error
    match listed:
        case {"icl_tasks": [*entries]} if entries:
            baselines = _read_baselines(folder / BASELINES_FILE)
            return tuple(_task(entry, baselines, folder) for entry in entries)
        case _:
            raise PreflightError(f"{path}: expected a list of tasks under `icl_tasks`")


def check_bundle(source: SourceSpec, *, base: Path) -> None:
    """Check that the bundle exists and has every task's data. A PreflightError names the source and the file."""
    with as_preflight_error(source):
        for task in read_bundle(bundle_folder(source, base=base)):
            check_file(task.path)


def build_core_prompts(task: CoreTask, *, max_problems: int | None = None) -> tuple[CorePrompts, ...]:
    """Return the problems of a task with their solved examples, in the order of a fixed shuffle.

    Raises:
        PreflightError: the data is missing.
        StageError: a line is broken, or there are too few items to draw examples from.
    """
    items = list(read_items(task))
    random.Random(_SHUFFLE_SEED).shuffle(items)
    items = items[:max_problems]
    if len(items) <= task.num_fewshot:
        raise StageError(
            f"{task.path}: has {several(len(items), 'item')}, too few for "
            f"{several(task.num_fewshot, 'solved example')} of each"
        )
    problems = []
    for index, item in enumerate(items):
        shots = [items[other] for other in fewshot_indices(index, len(items), task.num_fewshot)]
        prompts = render_prompts(item, shots, delimiter=task.delimiter)
        lengths = map(len, _solved_examples(shots, delimiter=task.delimiter))
        starts = tuple(itertools.accumulate(lengths, initial=0))[: len(shots)]
        problems.append(CorePrompts(task.kind, prompts, item.gold, starts))
    return tuple(problems)


def read_items(task: CoreTask) -> Sequence[CoreItem]:
    """Return the items of a task in the order of its file. A StageError names a line that is no item of its type."""
    items = []
    for line in json_lines(task.path):
        item = parse_item(task.kind, line.value) if line.problem is None else None
        if item is None:
            raise StageError(f"{line.where()}: {line.problem or f'not an item of a {task.kind} task'}")
        items.append(item)
    return items


def parse_item(kind: CoreKind, value: object) -> CoreItem | None:
    """Return the item in a decoded line, or None if the line has no item of this kind.

    Contexts of `language_modeling` are stripped on both sides.
    """
    match kind, value:
        case "multiple_choice", {"query": str(query), "choices": [*choices], "gold": int(gold)}:
            pairs = tuple((query, str(choice)) for choice in choices)
        case "schema", {"context_options": [*contexts], "continuation": str(continuation), "gold": int(gold)}:
            pairs = tuple((str(context), continuation) for context in contexts)
        case "language_modeling", {"context": str(context), "continuation": str(continuation)}:
            pairs, gold = ((context.strip(), continuation),), 0
        case _:
            return None
    return CoreItem(kind, pairs, gold) if 0 <= gold < len(pairs) else None


def _task(entry: object, baselines: dict[str, float], folder: Path) -> CoreTask:
    match entry:
        case {
            "label": str(label),
            "dataset_uri": str(uri),
            "num_fewshot": [int(num_fewshot), *_],
            "icl_task_type": "multiple_choice" | "schema" | "language_modeling" as kind,
            **rest,
        }:
            if label not in baselines:
                raise PreflightError(f"{folder / BASELINES_FILE}: no `Random baseline` for the task {label}")
            if (reason := why_refused(uri)) is not None:
                raise PreflightError(f"{folder / TASKS_FILE}: the task {label} reads {show(uri)}: {reason}")
            path, delimiter = folder / DATA_FOLDER / uri, str(rest.get("continuation_delimiter", " "))
            return CoreTask(label, kind, path, num_fewshot, delimiter, chance=baselines[label] / 100)
        case _:
            raise PreflightError(
                f"{folder / TASKS_FILE}: a task needs label, dataset_uri, num_fewshot (a list) and icl_task_type "
                f"(multiple_choice, schema, language_modeling); found {str(entry)[:200]}"
            )


def _read_baselines(path: Path) -> dict[str, float]:
    """Return the expected accuracy of a guess in percent, by task."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)}
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, ValueError, TypeError) as error:
        expected = "columns `Eval Task` and `Random baseline` (a number)"
        raise PreflightError(f"{path}: expected {expected}: {error}") from error
