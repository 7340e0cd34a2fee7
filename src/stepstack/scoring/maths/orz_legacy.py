r"""Open-Reasoner-Zero's "legacy" verdict, the grader its published runs trained with, reproduced from its documented
behaviour.

Three steps: strings tidied in the manner of Hendrycks et al. (MATH), compared as numbers or text; symbolic or
15-digit numeric equality of the LaTeX; the same after the Minerva normalisation (Lewkowycz et al. 2022, appendix D),
with equality of those strings where they cannot be read. It stays strict where ORZ is: 1/3 is not 0.333333, set order
counts, nothing is expanded, and a final full stop is part of the answer (``3R^2.``; a number may end in one).

More lenient than ORZ in one thing: signs of Unicode are read as their TeX (``½``, ``√2``, ``≤``, digits of any script).

These false positives of ORZ are left out, since each pays for a wrong answer: a list or a number in another base is not
read as its first part (``3`` for ``3, 5, 7`` or for ``3\text{ or }4``; ``204_6`` for ``204_5``), ``1\frac45`` is not
4/5, only commas between thousands are dropped (neither ``1,2`` nor ``1, 234`` is one number, and ``3 4`` is not 34),
whole numbers are compared beyond 15 digits, ``0.\overline{3}`` is not 0.3, ``-y=`` is no head like ``y=``, two
different units or a million are no unit to be dropped, and an empty gold is an error.
"""

from __future__ import annotations

import itertools
import re
from decimal import Decimal

from stepstack.scoring.maths.latex import Unreadable, read
from stepstack.scoring.maths.spelling import as_tex, spelling, with_thousands

MAX_REPETITIVE_LENGTH, MAX_REPETITION_SCORE = 128, 0.2
MAX_REPETITION = 1024  # characters; longer texts are refused by the graders' own cap

# Minerva's table of words and commands that carry no value.
_UNITS = re.compile(
    "square|ways|integers|dollars|mph|inches|ft|hours|km|units|sue|points|feet|minutes|digits|cents|degrees|cm|gm|pounds"
    r"|meters|meals|edges|students|childrentickets|multiples|\\ldots|\\dots|\\text\{[s.]\}|\\mathrm\{th\}|\^\\circ"
    r'|\^\{\\circ\}|\\;|,\\!|\{,\}|"'
)
# ORZ cuts off all from the last "\\text{ "; what follows it, or is a number or a second answer, is no unit.
_RIGHT_UNIT = re.compile(
    r"\\text\{ (?!(?:or|and)\b)(?![^{}]*\b(?:thousand|million|billion|trillion)\b)[^{}\d]*\}(?:\^\{?\d\}?)?$"
)
_EMPTY_TEXT = re.compile(r"\\text\{\}(?:\^[23])?")
_REWRITES = (
    (".$", "$"),
    ("\\$", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")


def _bare(text: str) -> str:
    r"""Text in TeX, without separators of thousands, ``\left`` (the unit "ft" would match in it) and ``\right``."""
    return re.sub(r"\\(?:left|right)(?![a-z])", "", with_thousands(as_tex(text))).strip()


def tidy(text: str) -> str:
    """Hendrycks form: also without degrees, currency, percent, units at the end and a head such as ``x=``."""
    text = _bare(text).replace("\\\\", "\\").replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    text = _RIGHT_UNIT.sub("", text)
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = spelling(f"0{text}" if text.startswith(".") else text)
    head, equals, tail = text.partition("=")
    text = tail if equals and "=" not in tail and re.fullmatch("[A-Za-z]{1,2}", head) else text
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"(-?\d+)/(-?\d+)", r"\\frac{\1}{\2}", text) if re.fullmatch(r"-?\d+/-?\d+", text) else text


def minerva(text: str) -> str:
    """Normal form of Minerva: articles, unit words and text commands dropped, fraction and root braces added."""
    text = re.sub(r"an? ", "", _bare(text))
    text = re.sub(r"\\ |(?<!\d) +| +(?!\d)", "", text)  # 3 4 is no 34
    for before, after in _REWRITES:
        text = text.replace(before, after)
    text = _EMPTY_TEXT.sub("", _UNITS.sub("", text))
    text = re.sub(r"^[^$]*(\$[^$]*\$).*$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:text|textbf|overline(?!\{\d))\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1", text)
    text = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", text)
    return re.sub(r"sqrt([^{\[])", r"sqrt{\1}", text).replace("$", "")


def repetition(text: str) -> float:
    """Fraction of repeated substrings in [0, 1]: the sum of common prefixes of neighbouring suffixes over n(n+1)/2."""
    text = text[:MAX_REPETITION]
    if len(text) < 2:
        return 0.0
    suffixes = sorted(text[i:] for i in range(len(text)))
    shared = sum(_common_prefix(a, b) for a, b in itertools.pairwise(suffixes))
    return 2 * shared / (len(text) * (len(text) + 1))


def _common_prefix(a: str, b: str) -> int:
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


def equal(gold: str, answer: str) -> bool:
    """Whether two non-empty answers without their boxes are equal."""
    left, right = tidy(gold), tidy(answer)
    if _DECIMAL.fullmatch(left) and _DECIMAL.fullmatch(right):
        if Decimal(left) == Decimal(right):
            return True
    elif left == right:
        return True
    if any(len(text) > MAX_REPETITIVE_LENGTH and repetition(text) > MAX_REPETITION_SCORE for text in (gold, answer)):
        return False
    if _same_value(_bare(gold), _bare(answer)) is True:
        return True
    left, right = minerva(gold), minerva(answer)
    same = _same_value(left, right)
    return left == right if same is None else same


def _same_value(left: str, right: str) -> bool | None:
    """Whether two LaTeX texts are the same; None when one of them cannot be read."""
    try:
        return read(left).equals(read(right))
    except Unreadable:
        return None
