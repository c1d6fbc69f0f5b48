"""The calculator that a model calls by writing an expression between `<|python_start|>` and `<|python_end|>`.

It computes arithmetic and `'text'.count('x')` and refuses everything else. The expression is parsed but never executed.
Its length and depth, the size of its numbers and its exponents are limited, so no expression takes noticeable time or
memory. Training data and the engine format every result with `format_result`, so a model sees one format only.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from decimal import Decimal

MAX_EXPRESSION_CHARS = 1024
MAX_MAGNITUDE = 10**18
"""Limit for operands, intermediate values and results."""
MAX_EXPONENT = 64
MAX_DEPTH = 64
SIGNIFICANT_DIGITS = 12
"""Fewer than a double has, so that 0.1 + 0.2 is printed as 0.3."""

_STRING = re.compile(r"'[^'\\\n]*'|\"[^\"\\\n]*\"")
_ARITHMETIC = re.compile(r"[-+*/%(). 0-9]*")
_COUNT_CALL = re.compile(r"\.\s*count\s*\(")
_THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")
_LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
_PERCENT = re.compile(r"(?<![0-9.])([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *%(?= *(?:[-+*/)]|$))")
_NUMBER = re.compile(r"(-?)\$?(-?)([0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)")
_MAX_NUMBER_CHARS = 64

Number = int | float


class _UnsupportedError(Exception):
    """The calculator does not compute this expression. Never leaves this module."""


def calculate(expression: str) -> str | None:
    """Return the formatted result of `expression`, or None if it is not supported or has no value.

    Numbers may contain thousands commas (`1,200*3`) and percent signs (`20%*50` is 10). The operators are + - * / // %
    and ** with small exponents. The only call is `'text'.count('x')`. Not supported: names, other calls and attributes,
    exponents of exponents, numbers beyond `MAX_MAGNITUDE`, more than `MAX_EXPRESSION_CHARS` characters.
    """
    source = _python_source(expression)
    if source is None:
        return None
    try:
        tree = ast.parse(source, mode="eval")
        return format_result(_evaluate(tree.body, depth=0))
    except (_UnsupportedError, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def format_result(value: Number | str) -> str:
    """Return a result as text: `10` for 10.0, `0.3` for 0.1 + 0.2, without exponent and without commas.

    Text that is a number (`$1,200.00`, `.50`) is formatted as that number. Other text is returned stripped.
    """
    if isinstance(value, str):
        number = read_number(value)
        return value.strip() if number is None else _format_decimal(number)
    if isinstance(value, int):
        return str(value)
    return _format_decimal(Decimal(repr(round(value, SIGNIFICANT_DIGITS))))


def read_number(text: str) -> Decimal | None:
    """Return the number in `text`, or None. Thousands commas, a leading $ and a final full stop are allowed."""
    text = text.strip()
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_NUMBER_CHARS else None
    if match is None or (match[1] and match[2]):
        return None
    number = Decimal(match[3].replace(",", ""))
    return -number if match[1] or match[2] else number


def _format_decimal(number: Decimal) -> str:
    if number == number.to_integral_value():
        return str(int(number))
    digits = format(float(number), f".{SIGNIFICANT_DIGITS}g")
    text = format(Decimal(digits), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _python_source(expression: str) -> str | None:
    """Return the expression as Python source, or None if it contains a character that is not allowed."""
    if len(expression) > MAX_EXPRESSION_CHARS:
        return None
    expression = expression.strip()
    strings = _STRING.findall(expression)
    outside = _COUNT_CALL.sub("(", _STRING.sub(" ", expression)) if strings else expression
    outside = _THOUSANDS.sub(lambda match: match[1].replace(",", ""), outside)
    if not outside or _ARITHMETIC.fullmatch(outside) is None:
        return None
    if strings:
        return expression
    return _PERCENT.sub(r"(\1/100)", _LEADING_ZEROS.sub("", outside))


def _evaluate(node: ast.expr, *, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise _UnsupportedError
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            result: Number = value  # type: ignore[assignment]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_evaluate(operand, depth=depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            result = _evaluate(operand, depth=depth + 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            if isinstance(op, ast.Pow) and (_has_power(left) or _has_power(right)):
                raise _UnsupportedError
            result = _OPERATORS[type(op)](_evaluate(left, depth=depth + 1), _evaluate(right, depth=depth + 1))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(wanted))],
            keywords=[],
        ):
            result = text.count(wanted)
        case _:
            raise _UnsupportedError
    if not math.isfinite(result) or abs(result) > MAX_MAGNITUDE:
        raise _UnsupportedError
    return result


def _power(left: Number, right: Number) -> Number:
    power = left**right if abs(right) <= MAX_EXPONENT else None
    if not isinstance(power, int | float):  # a negative number to the power of a fraction is complex
        raise _UnsupportedError
    return power


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _has_power(node: ast.expr) -> bool:
    return any(isinstance(inner, ast.Pow) for inner in ast.walk(node))
