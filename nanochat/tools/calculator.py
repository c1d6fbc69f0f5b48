"""The calculator: what stands between `<|python_start|>` and `<|python_end|>`, evaluated over a parsed syntax tree.

Arithmetic and `'text'.count('x')`, nothing else: the source is parsed, never run, and length, depth, size of numbers
and exponents are bounded, so that no expression costs noticeable time or memory. `format_result` is the only place
that spells a result; training data and engine both go through it, so that a model sees one spelling.
"""

from __future__ import annotations

import ast
import math
import re
from decimal import Decimal

MAX_EXPRESSION_CHARS = 1024
MAX_MAGNITUDE = 10**18
"""No operand, intermediate value or result may be larger."""
MAX_EXPONENT = 64
MAX_DEPTH = 64
SIGNIFICANT_DIGITS = 12
"""Fewer than a double holds, so that 0.1 + 0.2 is spelled 0.3."""

_STRING = re.compile(r"'[^'\\\n]*'|\"[^\"\\\n]*\"")
_ARITHMETIC = re.compile(r"[-+*/%(). 0-9]*")
_COUNT_CALL = re.compile(r"\.\s*count\s*\(")
_THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")
_LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
_PERCENT = re.compile(r"(?<![0-9.])([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *%(?= *(?:[-+*/)]|$))")
_NUMBER = re.compile(r"(-?)\$?(-?)([0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)")
_MAX_NUMBER_CHARS = 64

Number = int | float


class _Refused(Exception):  # noqa: N818 -- control flow inside this module
    """The expression is outside what the calculator does."""


def calculate(expression: str) -> str | None:
    """Return the result of `expression` as `format_result` spells it, or None where it is refused or has no value.

    Numbers may hold thousands commas (`1,200*3`) and percent signs (`20%*50` is 10); operators are + - * / // % and
    ** with small exponents. Over text there is `'text'.count('x')`. Refused: names, calls and attributes of any other
    kind, exponents of exponents, numbers beyond `MAX_MAGNITUDE`, more than `MAX_EXPRESSION_CHARS` characters.
    """
    source = _python_source(expression)
    if source is None:
        return None
    try:
        tree = ast.parse(source, mode="eval")
        return format_result(_evaluate(tree.body, depth=0))
    except (_Refused, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def format_result(value: Number | str) -> str:
    """Return the one spelling of a result: `10` for 10.0, `0.3` for 0.1 + 0.2, no exponent, no commas.

    Text that reads as a number (`$1,200.00`, `.50`) is spelled as that number; other text comes back stripped.
    """
    if isinstance(value, str):
        number = read_number(value)
        return value.strip() if number is None else _spell(number)
    if isinstance(value, int):
        return str(value)
    return _spell(Decimal(repr(round(value, SIGNIFICANT_DIGITS))))


def read_number(text: str) -> Decimal | None:
    """Return the number that `text` spells, thousands commas, a leading $ and a final full stop ignored, or None."""
    text = text.strip()
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_NUMBER_CHARS else None
    if match is None or (match[1] and match[2]):
        return None
    number = Decimal(match[3].replace(",", ""))
    return -number if match[1] or match[2] else number


def _spell(number: Decimal) -> str:
    if number == number.to_integral_value():
        return str(int(number))
    digits = format(float(number), f".{SIGNIFICANT_DIGITS}g")
    spelled = format(Decimal(digits), "f")
    return spelled.rstrip("0").rstrip(".") if "." in spelled else spelled


def _python_source(expression: str) -> str | None:
    """Return what to parse, or None where a character has no business in an expression."""
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
        raise _Refused
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            result: Number = value  # type: ignore[assignment]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_evaluate(operand, depth=depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            result = _evaluate(operand, depth=depth + 1)
        case ast.BinOp(left=left, op=operator, right=right):
            if isinstance(operator, ast.Pow) and (_has_power(left) or _has_power(right)):
                raise _Refused
            left_value = _evaluate(left, depth=depth + 1)
            result = _apply(operator, left_value, _evaluate(right, depth=depth + 1))
        case ast.Call():
            result = _count(node)
        case _:
            raise _Refused
    if not math.isfinite(result) or abs(result) > MAX_MAGNITUDE:
        raise _Refused
    return result


def _apply(operator: ast.operator, left: Number, right: Number) -> Number:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return left // right
        case ast.Mod():
            return left % right
        case ast.Pow() if abs(right) <= MAX_EXPONENT:
            power = left**right
            if isinstance(power, int | float):
                return power
            raise _Refused  # a negative number to a fraction is complex
        case _:
            raise _Refused


def _has_power(node: ast.expr) -> bool:
    return any(isinstance(inner, ast.Pow) for inner in ast.walk(node))


def _count(call: ast.Call) -> int:
    match call:
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(wanted))],
            keywords=[],
        ):
            return text.count(wanted)
        case _:
            raise _Refused
