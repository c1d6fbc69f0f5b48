"""The output of `--json`: one document on the standard output, for other programs."""

from __future__ import annotations

import json

from pydantic import JsonValue


def print_json(content: JsonValue) -> None:
    """Print a JSON document. JSON has no word for a number that is not finite, so such a number becomes null."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    print(json.dumps(finite, indent=2))
