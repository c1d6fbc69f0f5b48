"""Finished suites of an evaluation, taken over from another fingerprint of it: a changed or added suite runs alone.

A suite's result depends on the stage's code, seed and model, and on the suite's own fields and source; not on which
other suites stand beside it. Where all of that is the same in two documents, the result is.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from nanochat.plan.fingerprint import Document, fingerprint_document
from nanochat.plan.stages import evaluation_stages
from nanochat.runner.store.record import StageIdentity, read_identity
from nanochat.storage.files import write_bytes
from nanochat.storage.layout import StageFolder, stage_folders


def reuse_suites(folder: StageFolder, identity: StageIdentity, base: Path) -> list[str]:
    """Copy into a stage's folder the suites that another of the same stage has finished; return their names."""
    if identity.stage not in evaluation_stages():
        return []
    wanted = {name: digest for name, digest in suite_digests(identity).items() if not _result(folder, name).exists()}
    taken = []
    for other in stage_folders(base):
        known = read_identity(other) if other.stage == identity.stage and other != folder else None
        digests = suite_digests(known) if known is not None else {}
        for name in [name for name, digest in wanted.items() if digests.get(name) == digest]:
            if _copy(other, folder, name):
                taken.append(name)
                del wanted[name]
    return sorted(taken)


def suite_digests(identity: StageIdentity) -> dict[str, str]:
    """Return a digest of all that a suite's result depends on, by the suite's name."""
    content = identity.document
    fields, sources = _map(content, "fields"), _map(content, "sources")
    prefix = f"{identity.stage}.suites."
    own: dict[str, Document] = {}
    for path, value in fields.items():
        if path.startswith(prefix):
            name, _, field = path.removeprefix(prefix).partition(".")
            own.setdefault(name, {})[field] = value
    shared = {key: content.get(key) for key in ("stage", "code", "seed", "upstream")}
    digests = {}
    for name, suite in own.items():
        source = str(suite.get("source"))
        of_source: Document = {path: value for path, value in fields.items() if path.startswith(f"sources.{source}.")}
        digests[name] = fingerprint_document(
            {**shared, "name": name, "suite": suite, "source": of_source, "data": sources.get(source)}
        )
    return digests


def _copy(other: StageFolder, folder: StageFolder, name: str) -> bool:
    """Copy the records, where there are any, and then the result that proves the suite done; return whether it was."""
    table, result = other.out / "tables" / f"{name}.jsonl", _result(other, name)
    if not result.is_file():
        return False
    try:
        if table.is_file():
            write_bytes(folder.out / "tables" / table.name, table.read_bytes())
        write_bytes(_result(folder, name), result.read_bytes())
    except FileNotFoundError:  # deleted meanwhile, as `gc` does
        return False
    return True


def _result(folder: StageFolder, name: str) -> Path:
    return folder.suites / f"{name}.json"


def _map(content: Document, key: str) -> dict[str, JsonValue]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}
