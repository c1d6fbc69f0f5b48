"""Explains YAML syntax errors in terms of what to change. The messages of the parser talk about tokens."""

from __future__ import annotations

from collections.abc import Callable

import yaml

_QUOTE_IT = "put the value in quotes"


def explain_syntax_error(
    error: yaml.MarkedYAMLError, line_at: Callable[[yaml.Mark], tuple[str, str]]
) -> tuple[yaml.Mark, str, str]:
    """Return the place, message and help for a syntax error.

    `line_at` returns the parts of the line before and after a mark.
    """
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark or error.context_mark
    assert isinstance(mark, yaml.Mark), "the parser marks every error"
    start = error.context_mark if isinstance(error.context_mark, yaml.Mark) else mark
    before, rest = line_at(mark)
    if "stream end" in problem or "end of stream" in problem:
        return _explain_end(mark, start, context, line_at(start)[1])
    if rest.startswith("\t"):
        return mark, "YAML cannot be indented with tabs", "use spaces"
    if before.endswith("$") and rest.startswith("{"):
        return mark, "`${...}` needs quotes inside `{ }` and `[ ]`", 'write "${vars.NAME}"'
    if "mapping values are not allowed" in problem:
        help_ = "indent the line like the other keys of its section, or put text that contains `: ` in quotes"
        return mark, "a `:` is not expected here", help_
    if "could not find expected ':'" in problem:
        return start, "a `:` is expected after the key", "write `key: value`"
    if "scanning a block scalar" in context:
        return start, f"a value that starts with `{line_at(start)[1][:1]}` starts a block of text", _QUOTE_IT
    if rest[:1] in ("@", "`", "%"):
        return mark, f"a value cannot start with `{rest[0]}`", _QUOTE_IT
    if problem.startswith("expected <block end>"):
        message = "the indentation does not match the lines above"
        if rest.startswith(":"):
            message = "a `:` is not expected here"
        return mark, message, f"indent this line like the other lines of the block that begins at line {start.line + 1}"
    if "scanning an alias" in context or "scanning an anchor" in context:
        sign = line_at(start)[1][:1]
        return start, f"`{sign}` starts an {'alias' if sign == '*' else 'anchor'}, which needs a name", _QUOTE_IT
    where = f" ({context}, which starts at line {start.line + 1})" if context else ""
    return mark, f"{problem}{where}", ""


def _explain_end(mark: yaml.Mark, start: yaml.Mark, context: str, rest: str) -> tuple[yaml.Mark, str, str]:
    """Explain a text that ends too early, and point at the bracket or quote that is still open."""
    opening = rest[:1]
    if "flow" in context and opening not in ("[", "{"):  # the parser waits for a value, and forgets the bracket
        return start, "a `[` or `{` is never closed", "close it, or put a text that begins with it in quotes"
    if "flow" in context:
        return start, f"this `{opening}` is never closed", f"close it with `{'}' if opening == '{' else ']'}`"
    if "quoted scalar" in context:
        return start, "this quote is never closed", f"close it with `{opening}`"
    return mark, "the text ends unexpectedly", ""
