"""The calculator that a policy may call: arithmetic and nothing else, in a process that can be killed."""

import time

import pytest

from stepstack.scoring.maths.calculator import Calculator, evaluate, reply


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("9-3+6", "12"),
        (" (2+3)*4 ", "20"),
        ("6/3", "2"),
        ("1/3", "0.3333333333"),
        ("7//2", "3"),
        ("-7%3", "2"),
        ("2**10", "1024"),
        ("1e3+0.5", "1000.5"),
        ("-(-4)", "4"),
    ],
)
def test_values(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("", "x+1", "True+1", "2j", "'a'*3", "__import__('os')", "[1]", "1 if 1 else 2", "1 <", "0x", "1/0", "0**-1"),
        *("10**200", "(-8)**0.5", "1e308*10-1e308*10", "(" * 900 + "1", "1+" * 600 + "1", "1\x002"),
    ],
)
def test_what_is_no_arithmetic_has_no_value(expression):
    assert reply(expression) is None


def test_what_takes_too_long_or_too_much_costs_a_timeout_and_the_next_is_answered():
    calculator = Calculator(timeout=0.5)
    assert calculator(["1+1", "2*3", "1+1"]) == ["2", "6", "2"]
    begin = time.perf_counter()
    assert calculator(["9**9**9", "1+2"]) == [None, "3"]
    assert time.perf_counter() - begin < 30
    calculator.close()
    assert calculator(["4-5"]) == ["-1"]
    calculator.close()
