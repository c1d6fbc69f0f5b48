"""Loads tasks of lm-evaluation-harness, runs them, and turns its samples into our records.

A task has the name of the library's registry, or is a YAML file. Paths of data files in such a file are relative to its
folder. The library's own functions, and Python functions that a YAML file names, run without a sandbox.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from nanochat.errors import NanochatError, StageError
from nanochat.evals.harness.language_model import HarnessModel
from nanochat.evals.metrics import score_problems
from nanochat.evals.task_result import ExampleRecord, TaskResult
from nanochat.tasks.mixture import FEWSHOT_SEED, choose_problems

_NOT_METRICS = ("alias", "name", "sample_len")


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks that are ready to run, by name, with the numbers of the examples to ask."""

    loaded: Mapping[str, Any]
    chosen: Mapping[str, list[int]]

    def __len__(self) -> int:
        return sum(map(len, self.chosen.values()))


@dataclass(frozen=True)
class HarnessResult:
    """What the library measured."""

    result: TaskResult | None
    """The score and records of the main metric, or None if its values are not shares of right answers."""
    records: tuple[ExampleRecord, ...]
    main: float
    """The main metric as the library aggregates it; the mean over tasks if there are several."""
    metrics: dict[str, float]
    """Every metric of every task, such as `acc_norm`, or `TASK.acc_norm` if there are several tasks."""


def load_tasks(name: str, *, num_fewshot: int | None, max_problems: int | None) -> HarnessTasks:
    """Return a task, or the tasks of a group, and read their data.

    `max_problems` keeps the first problems of the fixed shuffle that our own tasks use, for each task.

    Raises:
        StageError: there is no such task, or its configuration or its data cannot be read.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    datasets.disable_progress_bars()
    try:
        if name.endswith((".yaml", ".yml")):
            loaded = TaskManager(include_defaults=False).load([_read_config(Path(name))])
        else:
            loaded = TaskManager().load([name])
        chosen = {}
        for task_name, task in loaded["tasks"].items():
            if num_fewshot is not None:
                task.set_config(key="num_fewshot", value=num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            # The library numbers the examples that it asks in ascending order.
            chosen[task_name] = sorted(choose_problems(len(task.eval_docs), max_problems))
    except NanochatError:
        raise
    except Exception as error:
        raise StageError(f"lm_eval cannot load `{name}`: {type(error).__name__}: {error}") from error
    return HarnessTasks(loaded, chosen)


def run_tasks(tasks: HarnessTasks, model: HarnessModel, *, metric: str | None) -> HarnessResult:
    """Run the tasks and return what was measured.

    `metric` is the main metric, such as `acc_norm` or `exact_match,strict-match` (with the filter); the default is each
    task's first one.

    Raises:
        StageError: a task fails, or has no such metric.
    """
    try:
        results = evaluate(model, dict(tasks.loaded), samples=dict(tasks.chosen), bootstrap_iters=0)
    except Exception as error:
        if model.failure is not None:
            raise model.failure from None
        raise StageError(f"lm_eval: {type(error).__name__}: {error}") from error
    assert results is not None, "there is one process"
    records: list[ExampleRecord] = []
    values: list[float] = []
    aggregates: list[float] = []
    for name, samples in results["samples"].items():
        main, filter_name = _main_metric(samples, metric, name)
        aggregates.append(float(results["results"][name][f"{main},{filter_name}"]))
        for sample in samples:
            if sample["filter"] == filter_name:
                value = sample[main]
                values.append(float(value) if isinstance(value, bool | int | float) else -1.0)
                records.append(_record(name, sample, main, values[-1], tasks.loaded["tasks"][name], model.cut))
    metrics = _all_metrics(results["results"], tasks)
    aggregate = sum(aggregates) / len(aggregates)
    if not all(0.0 <= value <= 1.0 for value in values):
        return HarnessResult(None, tuple(records), aggregate, metrics)
    has_options = all(len(record.options) > 1 for record in records)
    chance = sum(1 / len(record.options) for record in records) / len(records) if has_options else 0.0
    score = score_problems(values, chance=chance)
    return HarnessResult(TaskResult(score, tuple(records)), tuple(records), aggregate, metrics)


def _read_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = load_yaml(path)
    arguments = config.get("dataset_kwargs")
    if isinstance(arguments, dict) and "data_files" in arguments:
        config["dataset_kwargs"] = {**arguments, "data_files": _below(arguments["data_files"], path.parent)}
    return config


def _below(value: object, folder: Path) -> Any:
    """Return paths of files, in lists and maps, as absolute ones. Addresses stay as they are."""
    match value:
        case str() if "://" not in value:
            return str(folder / value)
        case list():
            return [_below(item, folder) for item in value]
        case dict():
            return {key: _below(item, folder) for key, item in value.items()}
    return value


def _main_metric(samples: Sequence[Mapping[str, Any]], metric: str | None, task: str) -> tuple[str, str]:
    """Return the name of the main metric and of its filter."""
    known = list(dict.fromkeys((name, str(sample["filter"])) for sample in samples for name in sample["metrics"]))
    if metric is None:
        return known[0]
    name, _, filter_name = metric.partition(",")
    found = [pair for pair in known if pair[0] == name and filter_name in ("", pair[1])]
    if not found:
        listed = ", ".join(name if filter_name == "none" else f"{name},{filter_name}" for name, filter_name in known)
        raise StageError(f"lm_eval: `{task}` has no metric `{metric}`; its metrics are {listed}")
    return found[0]


def _record(
    task: str, sample: Mapping[str, Any], metric: str, value: float, task_object: Any, cut: set[str]
) -> ExampleRecord:
    arguments, responses = sample["arguments"], [response[0] for response in sample["resps"]]
    context, target = str(arguments[0][0]), sample["target"]
    options: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    output, expected = "", str(target)
    match task_object.OUTPUT_TYPE:
        case "multiple_choice":
            choices = task_object.doc_to_choice(sample["doc"])
            options = tuple(str(pair[1]) for pair in arguments[: len(choices)])
            logprobs = tuple(float(response[0]) for response in responses[: len(choices)])
            lengths = [len(choice) or 1 if metric == "acc_norm" else 1 for choice in choices]
            output = options[max(range(len(options)), key=lambda i: logprobs[i] / lengths[i])]
            expected = options[target] if isinstance(target, int) and 0 <= target < len(options) else str(target)
        case "loglikelihood":
            options, logprobs = (str(arguments[0][1]),), (float(responses[0][0]),)
            output, expected = options[0] if responses[0][1] else "", options[0]
        case "loglikelihood_rolling":
            logprobs = (float(responses[0]),)
        case _:
            output = str(responses[0])
    return ExampleRecord(
        index=int(sample["doc_id"]),
        task=task,
        prompt=context,
        output=output,
        expected=expected,
        correct=value == 1.0,
        score=value if 0.0 < value < 1.0 else None,
        options=options,
        logprobs=logprobs,
        is_truncated=context in cut,
    )


def _all_metrics(results: Mapping[str, Mapping[str, Any]], tasks: HarnessTasks) -> dict[str, float]:
    metrics = {}
    for task in tasks.loaded["tasks"]:
        for key, value in results[task].items():
            metric, _, filter_name = key.partition(",")
            if key not in _NOT_METRICS and not metric.endswith("_stderr") and isinstance(value, int | float):
                parts = [task] if len(tasks.loaded["tasks"]) > 1 else []
                parts += [metric] if filter_name in ("", "none") else [metric, filter_name]
                metrics[".".join(parts)] = float(value)
    return metrics
