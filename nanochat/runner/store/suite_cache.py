"""Copies finished suites of an evaluation from its earlier computations, so that only changed or new suites run.

The result of a suite depends on the stage's code, seed and model, and on the suite's own fields and source. It does not
depend on the other suites. If all of that is the same in two computations of the stage, so is the result. A damaged
result is not copied.
"""

from __future__ import annotations

from pathlib import Path

from nanochat.plan.fingerprint import Document, fingerprint_document
from nanochat.plan.stages import evaluation_stages
from nanochat.runner.store.record import StageIdentity, read_identity
from nanochat.storage.layout import StageFolder, stage_folders
from nanochat.storage.suite_files import copy_suite, read_suite


def reuse_suites(folder: StageFolder, identity: StageIdentity, base: Path) -> list[str]:
    """Copy suites that are finished in other folders of the same stage into `folder`, and return their names."""
    if identity.stage not in evaluation_stages():
        return []
    suites = _suite_digests(identity).items()
    missing = {name: digest for name, digest in suites if read_suite(folder, name) is None}
    reused = []
    for other in stage_folders(base):
        known = read_identity(other) if other.stage == identity.stage and other != folder else None
        digests = _suite_digests(known) if known is not None else {}
        for name in [name for name, digest in missing.items() if digests.get(name) == digest]:
            if copy_suite(name, other, folder):
                reused.append(name)
                del missing[name]
    return sorted(reused)


def _suite_digests(identity: StageIdentity) -> dict[str, str]:
    """Return, for each suite, a digest of everything that its result depends on."""
    fields = identity.recipe_fields
    prefix = f"{identity.stage}.suites."
    suites: dict[str, Document] = {}
    for path, value in fields.items():
        if path.startswith(prefix):
            name, _, field = path.removeprefix(prefix).partition(".")
            suites.setdefault(name, {})[field] = value
    shared = {key: identity.document.get(key) for key in ("stage", "code", "seed", "upstream")}
    digests = {}
    for name, suite in suites.items():
        source = str(suite.get("source"))
        of_source: Document = {path: value for path, value in fields.items() if path.startswith(f"sources.{source}.")}
        digests[name] = fingerprint_document(
            {**shared, "name": name, "suite": suite, "source": of_source, "data": identity.source_digests.get(source)}
        )
    return digests
