"""Writes values as YAML on one line, which `yaml_reader` reads as the same values."""

from __future__ import annotations

import functools
import math

import yaml

from nanochat.recipe.parsing.diagnostics import LINE_BREAK
from nanochat.recipe.parsing.scalars import NUMBER


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text which YAML 1.1 or 1.2 would read as another type."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Write text that has line breaks in double quotes, so that it stays on one line."""
    style = '"' if LINE_BREAK.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
# SafeDumper knows only the numbers of YAML 1.1, and would leave text that is a number in 1.2 without quotes.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
_Dumper.add_representer(tuple, lambda dumper, items: dumper.represent_list(items))


def flow_text(value: object) -> str:
    """Return a scalar, list, tuple or map on one line of YAML."""
    return _text_of_str(value) if isinstance(value, str) else _dumped(value)


@functools.lru_cache(maxsize=4096)
def _text_of_str(value: str) -> str:
    """Return a text on one line of YAML. Most are names of fields, which every printed recipe has again."""
    return _dumped(value)


def _dumped(value: object) -> str:
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
