"""Words for YAML syntax errors: the parser's own speak of tokens, these say what to change."""

from __future__ import annotations

from collections.abc import Callable

import yaml

_QUOTE_IT = "put the value in quotes"


def explain_syntax_error(
    error: yaml.MarkedYAMLError, line_at: Callable[[yaml.Mark], tuple[str, str]]
) -> tuple[yaml.Mark, str, str]:
    """Return place, message and help for a syntax error. `line_at` gives the line before and from a mark on."""
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark or error.context_mark
    assert isinstance(mark, yaml.Mark), "the parser always says where"
    start = error.context_mark if isinstance(error.context_mark, yaml.Mark) else mark
    before, rest = line_at(mark)
    if "stream end" in problem or "end of stream" in problem:
        return _explain_end(mark, start, context, line_at(start)[1])
    if rest.startswith("\t"):
        return mark, "a tab cannot indent YAML", "use blanks"
    if before.endswith("$") and rest.startswith("{"):
        return mark, "`${...}` needs quotes inside `{ }` and `[ ]`", 'write "${vars.NAME}"'
    if "mapping values are not allowed" in problem:
        help_ = "indent the line like its siblings, or quote text that holds `: `"
        return mark, "a `:` is not expected here", help_
    if "could not find expected ':'" in problem:
        return start, "a `:` is expected after the key", "write `key: value`"
    if "scanning a block scalar" in context:
        return start, f"a value that begins with `{line_at(start)[1][:1]}` starts a block of text", _QUOTE_IT
    if rest[:1] in ("@", "`", "%"):
        return mark, f"a value cannot start with `{rest[0]}`", _QUOTE_IT
    if problem.startswith("expected <block end>"):
        what = "a `:` is not expected here" if rest.startswith(":") else "this does not fit the lines above"
        return mark, what, f"indent it like its siblings; the block began at line {start.line + 1}"
    if "scanning an alias" in context or "scanning an anchor" in context:
        sign = line_at(start)[1][:1]
        return start, f"`{sign}` begins an {'alias' if sign == '*' else 'anchor'}, which needs a name", _QUOTE_IT
    where = f" ({context}, begun at line {start.line + 1})" if context else ""
    return mark, f"{problem}{where}", ""


def _explain_end(mark: yaml.Mark, start: yaml.Mark, context: str, rest: str) -> tuple[yaml.Mark, str, str]:
    """The text ends where something is still open: point at its beginning."""
    opening = rest[:1]
    if "flow" in context:
        return start, f"this `{opening}` is never closed", f"close it with `{'}' if opening == '{' else ']'}`"
    if "quoted scalar" in context:
        return start, "this quote is never closed", f"close it with `{opening}`"
    return mark, "the text ends too early", ""
