r"""Equality by math-verify, with numbers compared by a rule of our own.

math-verify rounds to a number of places, so every pair of small numbers is equal to it. Here:

* Exact numbers (no decimal point) are equal where their difference is zero: rationals exactly, others to 40 digits.
* A decimal equals an exact number, or a decimal with more digits, that it writes down: exactly, or rounded or cut off
  with at least MIN_DIGITS significant digits. 0.333333 and 0.3333333 are 1/3; 0.333 and .49999951 (for 1/2) are not.
  Zeros at its end are not counted, nor digits beyond the 17th.
* ``50\%`` is both 50 and 0.5, as in math-verify.

The rule holds inside lists, points, sets, matrices and intervals too. All else is math-verify's: polynomials are
expanded, sets have no order, equations may be multiplied out.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from stepstack.scoring.maths.notation import without_bases
from stepstack.scoring.maths.spelling import readable

MIN_DIGITS = 6  # significant digits of a decimal that may stand for a number it does not equal
DIGITS = 60  # of a number's value
CLOSE = 40  # digits in which the values of two exact numbers agree when they are equal


@dataclass(frozen=True, slots=True)
class _Number:
    """Exact value of what is written, and the place value of its last digit; None where all of it is exact."""

    value: Any
    place: Any = None


def equal(gold: str, answer: str) -> bool:
    """Whether two texts are equal, gold first: an equation or an inequality is compared as the gold is written."""
    parse, verify, options = _math_verify()
    left, right = (parse(f"\\boxed{{{without_bases(readable(text))}}}", **options) for text in (gold, answer))
    if not left or not right:
        return False
    if isinstance(left[0], str) or isinstance(right[0], str):
        return verify(left, right, strict=True, timeout_seconds=None)
    return _equal(left[0], right[0])


@functools.cache
def _math_verify() -> tuple[Callable, Callable, dict[str, Any]]:
    """Functions of math-verify, imported at first use: a second of start-up that string graders need not pay.

    Its SIGALRM is off, because it works in main threads only.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeout is off: the pool has one
    normal = NormalizationConfig(units=True, malformed_operators=False, nits=False, boxed="all", equations=False)
    boxed = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=normal)
    options = {"extraction_config": [boxed], "extraction_mode": "first_match", "parsing_timeout": None}
    return parse, verify, options


def _equal(gold: Any, answer: Any) -> bool:
    import sympy

    numbers = _numbers(gold), _numbers(answer)
    if numbers[0] and numbers[1]:
        return any(_same(one, other) for one in numbers[0] for other in numbers[1])
    for kind in (sympy.FiniteSet, sympy.Tuple):
        if isinstance(gold, kind) and isinstance(answer, kind) and len(gold) == len(answer):
            return _equal_parts(list(gold.args), list(answer.args), ordered=kind is sympy.Tuple)
    if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return gold.shape == answer.shape and _equal_parts(gold.flat(), answer.flat(), ordered=True)
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        same_ends = (gold.left_open, gold.right_open) == (answer.left_open, answer.right_open)
        return same_ends and _equal(gold.start, answer.start) and _equal(gold.end, answer.end)
    _, verify, _ = _math_verify()
    # A half-open or unbounded interval is no point, so an inequality may say it; (1, 2) may be a point.
    interval = isinstance(gold, sympy.Set) and not (isinstance(gold, sympy.Interval) and gold.is_open and _finite(gold))
    return verify(gold, answer, strict=True, allow_set_relation_comp=interval, timeout_seconds=None)


def _finite(interval: Any) -> bool:
    return bool(interval.start.is_finite and interval.end.is_finite)


def _equal_parts(gold: Sequence[Any], answer: Sequence[Any], *, ordered: bool) -> bool:
    if ordered:
        return all(_equal(one, other) for one, other in zip(gold, answer, strict=True))
    left = list(answer)
    for one in gold:
        match = next((place for place, other in enumerate(left) if _equal(one, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _numbers(expression: Any) -> list[_Number]:
    """Readings of a closed number, two for a percentage; empty for anything else."""
    import sympy

    if not isinstance(expression, sympy.Expr):
        return []
    imaginary = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
    expression = expression.subs(dict.fromkeys(imaginary, sympy.I)) if imaginary else expression
    if expression.free_symbols or expression.has(sympy.nan, sympy.zoo) or not expression.is_number:
        return []
    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    if isinstance(expression, sympy.Mul) and hundredth in expression.args:
        rest = sympy.Mul(*(factor for factor in expression.args if factor != hundredth))
        number = _number(rest)
        part = None if number.place is None else number.place / 100
        return [number, _Number(number.value / 100, part)]
    return [_number(expression)]


def _number(expression: Any) -> _Number:
    import sympy

    floats = expression.atoms(sympy.Float)
    written = {number: sympy.Rational(repr(float(number))) for number in floats}
    value = expression.xreplace(written).doit()
    if len(floats) != 1 or not value.is_Rational:
        return _Number(value)
    (text,) = (repr(abs(float(number))) for number in floats)
    _, digits, exponent = Decimal(text).as_tuple()
    factor = abs(value / sympy.Rational(text)) if any(digits) else sympy.Integer(0)
    scaled = factor.is_Rational and set(str(factor.p) + str(factor.q)) <= {"1", "0"}  # times a power of ten
    significant = len("".join(map(str, digits)).lstrip("0"))
    if not scaled or significant < MIN_DIGITS:
        return _Number(value)
    return _Number(value, factor * sympy.Integer(10) ** int(exponent))


def _same(one: _Number, other: _Number) -> bool:
    import sympy

    a, b = one.value, other.value
    if a == b:
        return True
    if a.is_infinite or b.is_infinite:
        return False
    if not (a.is_Rational and b.is_Rational):
        near, far = a.evalf(DIGITS), b.evalf(DIGITS)
        if abs(near - far) <= sympy.Float(10) ** -CLOSE * max(abs(near), abs(far)):
            return True
    return _writes(one, other) or _writes(other, one)


def _writes(decimal: _Number, number: _Number) -> bool:
    """Whether ``decimal`` is ``number`` rounded or cut off at its last place."""
    import sympy

    if decimal.place is None or (number.place is not None and number.place >= decimal.place):
        return False
    if not number.value.is_real:
        return False
    steps = (number.value / decimal.place).evalf(DIGITS)
    mine = abs(decimal.value / decimal.place)
    same_sign = bool(steps > 0) == bool(decimal.value > 0)
    return same_sign and mine in (sympy.floor(abs(steps)), sympy.floor(abs(steps) + sympy.Rational(1, 2)))
