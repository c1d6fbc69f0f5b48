"""Rows of a copy of HellaSwag without `ctx_a` and `ctx_b`, cleaned by lm-evaluation-harness's own function."""

from __future__ import annotations

from typing import Any


def process_docs(dataset: Any) -> Any:
    """Return the rows with `query` and `choices`, as the library's task has them, but without the activity's name."""
    from lm_eval.tasks.hellaswag.utils import preprocess

    def clean(row: dict[str, Any]) -> dict[str, Any]:
        return {"query": preprocess(row["ctx"]), "choices": [preprocess(ending) for ending in row["endings"]]}

    return dataset.map(clean)
