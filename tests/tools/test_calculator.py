"""The calculator returns correct results in one format, and None for everything that it does not support."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.tools.calculator import MAX_MAGNITUDE, calculate, format_result, read_number

# Results computed by hand. Each has one format: 10, not 10.0.
ARITHMETIC = [
    ("1+1", "2"), ("48/2", "24"), ("10.0", "10"), ("2*5.0", "10"), ("16-3-4", "9"), ("2+3*4", "14"),
    ("(2+3)*4", "20"), ("-3", "-3"), ("--3", "3"), ("+3", "3"), (" 7 - 10 ", "-3"), ("7//2", "3"), ("7 % 3", "1"),
    ("1/4", "0.25"), ("0.1+0.2", "0.3"), (".5*4", "2"), ("5.", "5"), ("2/3", "0.666666666667"), ("1,200*3", "3600"),
    ("1,000,000+1", "1000001"), ("1,234.5*2", "2469"), ("20%*50", "10"), ("50*20%", "10"), ("100%-20%", "0.8"),
    ("05+03", "8"), ("2**10", "1024"), ("4**0.5", "2"), ("2**-1", "0.5"), ("0.1+0.2-0.3", "0"), ("1/10000", "0.0001"),
    ("1-1", "0"), ("-0.0", "0"), ("123456789*1000", "123456789000"), ("333333*3.0", "999999"),
]  # fmt: skip
COUNTS = [
    ("'strawberry'.count('r')", "3"), ('"strawberry".count("r")', "3"), ("'strawberry'.count(\"rr\")", "1"),
    ("'a,b,c'.count(',')", "2"), ("'1,000,000'.count(',')", "2"), ("'don''t'.count('t')", "1"),
    ("\"it's\".count('s')", "1"), ("'abc' . count ( 'z' )", "0"), ("'größe'.count('ö')", "1"),
    ("'aaa'.count('a')*2", "6"), ("''.count('a')", "0"),
]  # fmt: skip
# Numbers from the calculator and text from the data have the same format.
FORMATTED = [
    (10.0, "10"), (10, "10"), ("10.0", "10"), (" 10. ", "10"), ("$10", "10"), ("1,200.50", "1200.5"), ("-$5", "-5"),
    ("$-5", "-5"), (".50", "0.5"), ("-0", "0"), ("3/4", "3/4"), (" n/a ", "n/a"), (1e-5, "0.00001"),
    (1e15, "1000000000000000"), (1e17 + 0.0, "100000000000000000"),
]  # fmt: skip
UNSUPPORTED = [
    # incomplete or ambiguous
    "", " ", "x", "1+", "1 2", "()", "1,2", "12,34", "1,0000",
    # no finite value, or too large
    "1//0", "1/0", "1%0", "0.0**-1", "(-8)**0.5", "9**9**9", "(9**9)**9", "9**(3+9**9)", "2**65", "9**64", "2**1e9",
    "9e99", "1e400",
    # Python that is not arithmetic
    "1_000", "0x10", "1j", "True", "None", "[1]*9", "(1,2)", "{}", "lambda: 1", "1 if 1 else 2", "1or 2", "1==1",
    "1<2", "1@2", "1<<70", "~1", "1;2", "1\n2", "1#2", "a:=1", "f'{1}'.count('1')", "b'a'.count(b'a')",
    # other uses of text
    "'a'", "'a'*10", "'a'+'b'", "'%s' % 1", "'a'.upper()", "'a'.count", "'a'.count()", "'a'.count('a', 0)",
    "'a'.count(1)", "'a'.count(*'a')", "'a'.count(sub='a')", "'a'.count('a').real", "'a'.__class__",
    "'a'.count.__self__", "'a'.format('a')", "'a'.replace('a','b').count('b')", "('a').__class__.count('a')",
    "('a'*9).count('a')", "'\\x61'.count('a')", "'\\N{DIGIT ONE}'.count('1')", "'a\n'.count('a')",
    # calls and attributes
    "__import__('os').system('true')", "open('x')", "print(1)", "().__class__", "1 .real", "1.0.is_integer()",
    "exec('1')", "eval('1')",
    # characters, depth, length, size
    "٣+٤", "１+１", "1 + 1 = 2", "1\x00", "(" * 300 + "1" + ")" * 300, "-" * 900 + "1", "+".join(["1"] * 400),
    "1+" * 5000 + "1", "9" * 19, "9" * 1000, "9" * 5000, "999999999999*999999999999",
    "'" + "a" * 2000 + "'.count('a')",
]  # fmt: skip


@pytest.mark.parametrize(("expression", "expected"), ARITHMETIC + COUNTS + [(text, None) for text in UNSUPPORTED])
def test_calculate_computes_arithmetic_and_counts_letters(expression, expected):
    """Hostile, ambiguous and broken expressions give None; they raise no error and no warning."""
    assert calculate(expression) == expected


def test_calculate_is_fast_on_the_slowest_expressions():
    """Inputs that are built to be slow take far less time than decoding one token."""
    refused = ["9" * 1000, "1%" * 500, " " * 1000 + "x", f"1{' ' * 1000}%x", "1," * 500, "0" * 900 + "x", ".1" * 500]
    heaviest = ["*".join(["9"] * 18), "(9**18)*(9**0)", "(" * 60 + "1" + ")" * 60, "'" + "a" * 900 + "'.count('a')"]
    start = time.process_time()
    for _ in range(20):
        for expression in heaviest:
            assert calculate(expression) is not None
        for expression in refused:
            assert calculate(expression) is None
    assert time.process_time() - start < 2.0  # takes about 0.05 s; only a pattern that backtracks can take 2 s


@settings(max_examples=60)
@given(st.text(max_size=60) | st.text(alphabet="0123456789+-*/%(). ,'count", max_size=40))
def test_calculate_never_raises_on_any_or_almost_valid_text(text):
    result = calculate(text)
    assert result is None or (read_number(result) is not None and abs(float(result)) <= MAX_MAGNITUDE)


@given(st.integers(-10_000, 10_000), st.integers(1, 500), st.sampled_from("+-*/"))
def test_calculate_agrees_with_python_on_two_integers(left, right, operator):
    """Results agree to the 12 digits that the calculator keeps."""
    expected = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[operator]
    result = calculate(f"{left}{operator}{right}")
    assert result is not None
    assert math.isclose(float(result), expected, rel_tol=1e-11, abs_tol=1e-11)
    assert format_result(result) == result, "formatting a result twice changes nothing"


@pytest.mark.parametrize(("value", "expected"), FORMATTED)
def test_format_result_gives_one_format_for_numbers_and_text(value, expected):
    assert format_result(value) == expected
