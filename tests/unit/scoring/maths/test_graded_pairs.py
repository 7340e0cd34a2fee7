"""The graders on a table of pairs by kind, in both directions, and on MATH500's golds in other spellings."""

import itertools
import json
import os
import re
from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.scoring.maths.grade import grade
from stepstack.scoring.maths.spelling import spelling

PAIRS = yaml.safe_load(Path(__file__).with_name("pairs.yaml").read_text(encoding="utf-8"))
COLUMNS = ("math_verify", "orz_legacy", "exact")
SHARED = Path(os.environ.get("STEPSTACK_SHARED", Path(__file__).parents[4].parent / "shared"))
MATH500 = SHARED / "data" / "orz" / "math500.json"
needs_math500 = pytest.mark.skipif(not MATH500.is_file(), reason=f"needs {MATH500} (set STEPSTACK_SHARED)")


def right(grader: str, gold: str, answer: str) -> bool:
    return grade(grader, gold, answer).correct


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs(kind):
    wrong = []
    for gold, answer, verdicts, why in PAIRS[kind]:
        directions = [(gold, answer)] if kind == "gold first" else [(gold, answer), (answer, gold)]
        for (one, other), (grader, sign) in itertools.product(directions, zip(COLUMNS, verdicts, strict=True)):
            if right(grader, one, other) != (sign == "+"):
                wrong.append(f"{grader}({one}, {other}) should be {sign}: {why}")
    assert wrong == []


def test_the_table_is_large_and_has_no_pair_twice():
    pairs = [(gold, answer) for rows in PAIRS.values() for gold, answer, _, _ in rows]
    assert len(set(pairs)) == len(pairs) >= 150


@pytest.mark.parametrize("grader", ["math_verify", "orz_legacy"])
@pytest.mark.parametrize("command", ["frac", "dfrac"])
def test_fractions_of_digits_without_braces(grader, command):
    for top, bottom in itertools.product(range(1, 10), repeat=2):
        assert right(grader, f"{top}/{bottom}", f"\\{command}{top}{bottom}")
        assert not right(grader, f"{top}/{bottom}", f"\\{command}{top + 1}{bottom}" if top < 9 else "\\frac1{99}")


numbers = st.integers(1, 10**6)


@settings(max_examples=150, deadline=None)
@given(numbers, numbers, st.integers(-12, 12), st.integers(3, 12), st.sampled_from([ROUND_DOWN, ROUND_HALF_UP]))
def test_a_decimal_stands_for_what_it_writes_to_six_digits(top, bottom, scale, digits, rounding):
    value = Fraction(top, bottom) * Fraction(10) ** scale
    decimal = Context(prec=digits, rounding=rounding).divide(Decimal(value.numerator), Decimal(value.denominator))
    text, gold = f"{decimal:f}", f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    if "." not in text:
        return
    exact = Fraction(decimal) == value
    significant = len(text.replace(".", "").strip("0"))
    for one, other in ((gold, text), (text, gold)):
        assert right("math_verify", one, other) == (exact or significant >= 6)
    wrong = decimal + 3 * Decimal((0, (1,), decimal.as_tuple().exponent))
    if not f"{wrong:f}".endswith("0"):  # a zero at the end is no digit that could be wrong
        assert not right("math_verify", gold, f"{wrong:f}")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789xπ√½²≤·°,.{}()[]^_\\ " + "frac" + "sqrt", max_size=30) | st.text(max_size=30))
def test_spelling_twice_is_spelling_once(text):
    assert spelling(spelling(text)) == spelling(text)


def without_braces(gold: str) -> str:
    """Arguments of one digit or command stand without their braces."""
    text = re.sub(r"\\sqrt\{(\d|\\pi)\}", r"\\sqrt\1", gold)
    text = re.sub(r"\\frac\{(\d|\\pi)\}", r"\\frac\1", text)
    return re.sub(r"(\\frac(?:\d|\\pi|\{[^{}]*\}))\{(\d)\}", r"\1\2", text)


def spaced(gold: str) -> str:
    """Spaces around signs, which stand nowhere inside of a number."""
    return re.sub(r"(?<![\\,])([-+=()]|(?<!\d),|,(?!\d{3}|\\!))", r" \1 ", gold)


def unicode_signs(gold: str) -> str:
    """Signs of Unicode where TeX has a command."""
    text = re.sub(r"\^\{?\\circ\}?", "°", re.sub(r"\\sqrt\{(\d+)\}", r"√\1", gold)).replace("\\infty", "∞")
    text = re.sub(r"\^(\{)?([23])(?(1)\}|(?!\d))", lambda power: "²³"[int(power[2]) - 2], text)
    return text.replace("\\pi", "π").replace("-", "−")


def displayed(gold: str) -> str:
    """Fractions in display style."""
    return gold.replace("\\frac", "\\dfrac")


@needs_math500
@pytest.mark.parametrize("grader", COLUMNS)
@pytest.mark.parametrize("other", [without_braces, spaced, unicode_signs, displayed])
def test_every_math500_gold_equals_itself_in_another_spelling(grader, other):
    golds = [row["final_answer"] for row in json.loads(MATH500.read_text())]
    changed = [gold for gold in golds if other(gold) != gold]
    assert len(changed) >= 20
    assert [(gold, other(gold)) for gold in golds if not right(grader, gold, other(gold))] == []
    assert [(gold, other(gold)) for gold in golds if not right(grader, other(gold), gold)] == []


@needs_math500
def test_math500_fractions_without_braces_equal_their_quotients():
    golds = [row["final_answer"] for row in json.loads(MATH500.read_text())]
    fractions = [gold for gold in golds if re.fullmatch(r"-?\\d?frac\{\d\}\{\d\}|-?\\d?frac\d\d", gold)]
    assert len(fractions) >= 20
    for gold in fractions:
        quotient = re.sub(r"\\d?frac\{?(\d)\}?\{?(\d)\}?", r"\1/\2", gold)
        for grader in ("math_verify", "orz_legacy"):
            assert right(grader, quotient, without_braces(gold))
            assert right(grader, without_braces(gold), quotient)


@needs_math500
def test_no_two_math500_golds_are_equal():
    golds = sorted({spelling(row["final_answer"]) for row in json.loads(MATH500.read_text())})
    kinds = [gold for gold in golds if not re.fullmatch(r"-?\d+", gold)]
    pairs = [pair for step in (1, 2, 5) for pair in zip(kinds, kinds[step:], strict=False)]
    for grader in ("math_verify", "orz_legacy"):
        assert [(one, other) for one, other in pairs if right(grader, one, other)] == []
