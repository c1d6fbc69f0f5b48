"""Builds what MLflow should show about the models of a run: where they come from, and what was measured on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from nanochat.plan.stages import STAGES, training_stages
from nanochat.runner.report.markdown import code_span, escape, join_parts, paragraphs
from nanochat.runner.report.results import check_expectations, list_results, metrics_by_name, result_line
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.run_state import RunState
from nanochat.runner.store.verification import damage_to_read
from nanochat.runner.upload.headline import datasets_of_stage
from nanochat.storage.files import sha256_of_file
from nanochat.storage.layout import MODEL_FILES, MODEL_FOLDER, RunFolder, StageFolder
from nanochat.tracking.run_view import Dataset, Measurement, ModelView, Registration

Records = Mapping[str, StageRecord]
_BASE_MODEL_STAGES = ("pretrain",)
"""Training stages whose model continues texts instead of answering."""
_COMMON_TAGS = ("git_commit", "mlflow.user", "mlflow.source.name", "mlflow.source.type")
_COUNTS = (".bytes", ".tokens")
"""Ends the names of metrics that say how much was measured."""
_TRAINING_METRICS = ("/loss", "/bpb", "/val_loss")
"""Ends the names of results of training that say how good the model is."""
_DIGEST_CHARS = 12


def model_views(state: RunState, base: Path, records: Records, *, tags: Mapping[str, str]) -> tuple[ModelView, ...]:
    """Return the model of each finished training stage. `tags` are the tags of all runs of this process."""
    stages = (stage for stage in training_stages() if stage in records)
    views = (_model_view(state, base, stage, records[stage], tags) for stage in stages)
    return tuple(view for view in views if view is not None)


def measurements(state: RunState, base: Path, records: Records, *, run_link: Path) -> tuple[Measurement, ...]:
    """Return which metrics of which MLflow runs were measured on which models. `run_link` is the link of the run."""
    return tuple(_measurements(state, base, records, run_link))


def registration(
    state: RunState, base: Path, records: Records, *, folder: RunFolder, tags: Mapping[str, str]
) -> Registration | None:
    """Return the version that the last model of a finished run becomes, None if the run registers none."""
    name, stages = state.tracking.registered_name, [x.stage for x in state.stages if STAGES[x.stage].trains]
    if name is None or state.status != "finished" or not stages or stages[-1] not in records:
        return None
    model = _model_view(state, base, stages[-1], records[stages[-1]], tags)
    if model is None:
        return None
    return Registration(
        name=name,
        model=model,
        tags={
            "run": f"{state.name}/{folder.path.name}",
            "recipe_digest": sha256_of_file(folder.resolved)[:_DIGEST_CHARS],
            **{tag: model.tags[tag] for tag in ("git_commit", "stage", "fingerprint", "weights_digest")},
        },
        description=_describe(state, records),
        expectations=tuple(check_expectations(state.expectations, metrics_by_name(records))),
    )


def _model_view(
    state: RunState, base: Path, stage: str, record: StageRecord, tags: Mapping[str, str]
) -> ModelView | None:
    """Return the model of a training stage, or None if its files are damaged or not what a model has."""
    entry, folder = state.entry(stage), state.folders(base)[stage]
    prefix = f"out/{MODEL_FOLDER}/"
    files = {name: record.files[prefix + name].sha256 for name in MODEL_FILES if prefix + name in record.files}
    is_uploaded = _is_uploaded(state, stage)
    if len(files) < len(MODEL_FILES):
        return None
    if is_uploaded and any(damage_to_read(folder, record, folder.model / name) for name in MODEL_FILES):
        return None
    return ModelView(
        name=f"{state.name}-{stage}",
        link=folder.model_link,
        run_link=folder.link,
        step=int(record.metrics.get("steps", 0)),
        tags={
            **{tag: tags[tag] for tag in _COMMON_TAGS},
            "mlflow.note.content": f"The model of {state.name} after {stage}{result_line(record)}",
            "stage": stage,
            "fingerprint": folder.path.name,
            "folder": str(folder.model),
            "device": record.device,
            "weights_digest": files[MODEL_FILES[1]][:_DIGEST_CHARS],
        },
        params=entry.params,
        folder=folder.model.absolute(),
        stage=folder.path.relative_to(base).as_posix(),
        files=files,
        is_chat=stage not in _BASE_MODEL_STAGES,
        is_uploaded=is_uploaded,
    )


def _is_uploaded(state: RunState, stage: str) -> bool:
    wanted = state.tracking.upload_weights
    is_last = stage == [entry.stage for entry in state.stages if STAGES[entry.stage].trains][-1]
    is_registered = is_last and state.tracking.registered_name is not None
    return wanted == "all" or (wanted == "registered" and is_registered)


def _measurements(state: RunState, base: Path, records: Records, run_link: Path) -> Iterator[Measurement]:
    folders = state.folders(base)
    for stage, record in records.items():
        results = (result.metric for result in list_results({stage: record}))
        names = [f"{stage}/{metric}" for metric in results if not metric.endswith(_COUNTS)]
        if STAGES[stage].trains:
            if state.entry(stage).status != "cached":  # the run that trained it shows them
                shown = {
                    name: _only_dataset(state, stage, record) for name in names if name.endswith(_TRAINING_METRICS)
                }
                yield Measurement(run_link=run_link, model_link=folders[stage].model_link, metrics=shown)
        elif STAGES[stage].evaluates and (measured := _measured_model(state, base, stage)) is not None:
            shown = {name: _dataset(state, stage, record, name.partition("/")[2]) for name in names}
            yield Measurement(run_link=folders[stage].link, model_link=measured.model_link, metrics=shown)


def _measured_model(state: RunState, base: Path, stage: str) -> StageFolder | None:
    """Return the training stage whose model an evaluation scored, or None if the model was imported."""
    entry, folders = state.entry(stage), state.folders(base)
    if entry.init_from is not None:
        return StageFolder(base / entry.init_from)
    if "init_from" in entry.params:
        return None
    return next((folders[name] for name in STAGES[stage].upstream if name in folders), None)


def _dataset(state: RunState, stage: str, record: StageRecord, suite: str) -> Dataset | None:
    """Return the data set of a suite. None for a score of several suites."""
    source = record.recipe_fields.get(f"{stage}.suites.{suite}.source")
    datasets = datasets_of_stage(state.entry(stage), record)
    return next((dataset for dataset in datasets if dataset.name == source), None)


def _only_dataset(state: RunState, stage: str, record: StageRecord) -> Dataset | None:
    datasets = datasets_of_stage(state.entry(stage), record)
    return datasets[0] if len(datasets) == 1 else None


def _describe(state: RunState, records: Records) -> str:
    scores = [f"{stage}{result_line(record)}" for stage, record in records.items() if STAGES[stage].evaluates]
    parts = [escape("; ".join(scores)), paragraphs(state.description), f"Command: {code_span(state.command)}"]
    return join_parts(parts)
