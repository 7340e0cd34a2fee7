r"""Open-Reasoner-Zero's "legacy" verdict, the grader its published runs trained with, reproduced from its documented
behaviour.

Three steps: strings tidied in the manner of Hendrycks et al. (MATH), compared as numbers or text; symbolic or
15-digit numeric equality of the LaTeX; the same after the Minerva normalisation (Lewkowycz et al. 2022, appendix D),
with equality of those strings where they cannot be read. It stays strict where ORZ is: 1/3 is not 0.333333, set order
counts, nothing is expanded.

Five of ORZ's false positives are left out, since each pays for a wrong answer: a list or a number in another base is
not read as its first part (``3`` for ``3, 5, 7``; ``204_6`` for ``204_5``), ``1\frac45`` is not 4/5, only commas
between thousands are dropped (``1,2`` is not 12), whole numbers are compared beyond 15 digits, and an empty gold is
an error.
"""

from __future__ import annotations

import itertools
import re
from decimal import Decimal

from stepstack.scoring.maths.latex import Unreadable, read

MAX_REPETITIVE_LENGTH, MAX_REPETITION_SCORE = 128, 0.2
MAX_REPETITION = 1024  # characters; longer texts are refused by the graders' own cap

# Minerva's table of words and commands that carry no value.
_UNITS = re.compile(
    "square|ways|integers|dollars|mph|inches|ft|hours|km|units|sue|points|feet|minutes|digits|cents|degrees|cm|gm|pounds"
    r"|meters|meals|edges|students|childrentickets|multiples|\\ldots|\\dots|\\text\{[s.]\}|\\mathrm\{th\}|\^\\circ"
    r'|\^\{\\circ\}|\\;|,\\!|\{,\}|"'
)
_EMPTY_TEXT = re.compile(r"\\text\{\}(?:\^[23])?")
_REWRITES = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")


def ascii_digits(text: str) -> str:
    """Decimal digits of every script as 0-9; nothing else changes (x² stays x²)."""
    return text if text.isascii() else "".join(str(int(c)) if c.isdecimal() else c for c in text)


def _bare(text: str) -> str:
    r"""Text without a final full stop and ``\left``, ``\right`` (the unit "ft" would otherwise match in "\left")."""
    return re.sub(r"\\(?:left|right)(?![a-z])", "", ascii_digits(text)).strip().removesuffix(".")


def spelling(text: str) -> str:
    r"""One form for texts that TeX sets alike: spaces, digits of any script, ``\dfrac12``, 1,000 and 1000."""
    text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", _bare(text))
    text = re.sub(r"\\!|\s+|(?<!\\)\$", "", text)
    if not re.search(r"[(\[\]]|\\\{", text):  # (1,200) is a pair
        text = re.sub(r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\\sqrt([^{\[\\])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac([^{\\])", r"\\frac{\1}", text)
    return re.sub(r"(\\frac\{[^{}]*\})([^{\\])", r"\1{\2}", text)


def tidy(text: str) -> str:
    """Hendrycks form: also without degrees, currency, percent, units at the end and a head such as ``x=``."""
    text = _bare(text).replace("\\\\", "\\").replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    text = text.split("\\text{ ")[0] if text.count("\\text{ ") == 1 else text
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = spelling(f"0{text}" if text.startswith(".") else text)
    head, equals, tail = text.partition("=")
    text = tail if equals and "=" not in tail and len(head) <= 2 else text
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"(-?\d+)/(-?\d+)", r"\\frac{\1}{\2}", text) if re.fullmatch(r"-?\d+/-?\d+", text) else text


def minerva(text: str) -> str:
    """Normal form of Minerva: articles, unit words and text commands dropped, fraction and root braces added."""
    text = _bare(text)
    for before, after in _REWRITES:
        text = text.replace(before, after)
    text = _EMPTY_TEXT.sub("", _UNITS.sub("", text))
    text = re.sub(r"^[^$]*(\$[^$]*\$).*$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:text|textbf|overline)\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1", text)
    text = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", text)
    text = re.sub(r"sqrt([^{\[])", r"sqrt{\1}", text).replace("$", "")
    digits = text.replace(",", "")
    return digits if re.fullmatch(r"\d{1,3}(?:,\d{3})+", text) else text


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
