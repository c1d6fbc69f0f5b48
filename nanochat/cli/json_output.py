"""The output of `--json`: one document on the standard output, for other programs."""

from __future__ import annotations

import json
import math

from pydantic import JsonValue


def print_json(content: JsonValue) -> None:
    """Print a JSON document. JSON has no word for a number that is not finite, so such a number becomes null."""
    print(json.dumps(_finite(content), indent=2, allow_nan=False))


def _finite(value: JsonValue) -> JsonValue:
    match value:
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
