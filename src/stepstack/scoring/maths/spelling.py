r"""One TeX for texts that mean the same by their spelling alone. No algebra.

``spelling`` is the form in which two texts are compared as strings: spaces, signs of Unicode (``½``, ``√2``, ``x²``,
``≤``), arguments without braces (``\frac12``), thousands (``1,000``). ``readable`` is the form for an algebra system:
it also knows decorated and plain texts (``**73**``, ``\approx 3.14``, ``3e8``, ``0.\overline{3}``, ``sqrt(2)``).
"""

from __future__ import annotations

import re
import unicodedata

_COMMANDS = {
    "×": "times",
    "·": "cdot",
    "⋅": "cdot",
    "∙": "cdot",
    "÷": "div",
    "±": "pm",
    "∓": "mp",
    "≤": "le",
    "⩽": "le",
    "≥": "ge",
    "⩾": "ge",
    "≠": "ne",
    "≈": "approx",
    "∞": "infty",
    "∪": "cup",
    "∩": "cap",
    "∈": "in",
    "∅": "emptyset",
    "…": "ldots",
}
_GREEK = (  # from U+03B1 on
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "chi",
    "psi",
    "omega",
)
_CAPITALS = ("gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "phi", "psi", "omega")  # others look like Latin
_SIGNS = {
    **{sign: f"\\{command} " for sign, command in _COMMANDS.items()},
    **{chr(ord("α") + number): f"\\{name} " for number, name in enumerate(_GREEK)},
    **{chr(ord("Α") + number): f"\\{name.capitalize()} " for number, name in enumerate(_GREEK) if name in _CAPITALS},
    **{sign: f"\\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℚℕℂ", "RZQNC", strict=True)},
    "°": "^{\\circ}",
    "−": "-",
    "–": "-",
    "⁄": "/",
    "′": "'",
}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_LOWERED_RUN = re.compile(f"[{''.join(_LOWERED)}]+")
_ROOT_SIGN = re.compile("[√∛∜]")
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}
_UNDER_ROOT = re.compile(r"\s*(\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+)")  # √12 is the root of twelve, \sqrt12 is not

_TOKEN = r"(\d|[A-Za-z]|\\(?!(?:frac|sqrt|text|left|right)(?![A-Za-z]))[A-Za-z]+)"  # TeX's argument without braces
_RADICAND = re.compile(rf"\\sqrt(?![A-Za-z])\s*(\[[^\[\]]*\])?\s*{_TOKEN}")
_NUMERATOR = re.compile(rf"\\frac(?![A-Za-z])\s*{_TOKEN}")
_DENOMINATOR = re.compile(rf"\s*{_TOKEN}")

_GROUPING = re.compile(r"(?<=\d)(?:\{,\}|\\,|,\\!\s*|\\ |\s)(?=\d{3}(?!\d))")  # a separator that is no list's comma
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]|\.\d*,)")
_BRACKET = re.compile(r"[(\[\]]|\\\{")  # (1,200) is a pair

_MARKUP = re.compile(r"\*\*(.+)\*\*|\\\((.+)\\\)|\\\[(.+)\\\]|\$(.+)(?<!\\)\$", re.DOTALL)
# E notation where it can be no product with e: 3e8, 1.5e-3, 1e-3. 2e-1 is 2e - 1.
_SCIENTIFIC = re.compile(r"(?<![\w.\\^])(\d*\.\d+|1(?=[eE][-+])|\d+(?=[eE]\d))[eE]\+?(-?\d{1,3})(?![\w.^])")
_RECURRING = re.compile(r"(?<![\d.])(\d{0,9})\.(\d{0,60})\\(?:overline|bar|dot)\s*(?:\{(\d{1,60})\}|(\d))")
_TEXT = r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*"
_TEXT_NUMBER = re.compile(rf"{_TEXT}\{{\s*(-?[\d,]*\.?\d+)(\s+[A-Za-z][A-Za-z .]*)?\}}")
_MAGNITUDE = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?\b(thousand|million|billion|trillion)\b\s*([A-Za-z ]*)(?:\}|$)")
_MAGNITUDES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NAMES = re.compile(r"(?<![A-Za-z\\])(pi|sqrt|infinity)(?![A-Za-z])")


def spelling(text: str, thousands: bool = True) -> str:
    r"""One form for texts that TeX sets alike: spaces, signs of Unicode, ``\dfrac12``, ``x^2`` and ``x^{2}``.

    With ``thousands`` also 1,000 and 1000. ``2, 100`` is no 2100: a comma between thousands has no space behind it and
    stands in no brackets.
    """
    text = as_tex(text)
    text = with_thousands(text) if thousands else _GROUPING.sub("", text)
    text = with_braces(re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text))
    text = re.sub(r"\\!|(?<!\d)\s+|\s+(?!\d)|(?<!\\)\$", "", text)
    return re.sub(r"([\^_])(\d+|[A-Za-z]|\\[A-Za-z]+)", r"\1{\2}", text)


def readable(text: str) -> str:
    """Text for an algebra system that reads TeX, in which a plain or a decorated text means what people mean by it."""
    text = undecorated(as_tex(text))
    text = re.sub(r"^(?:([A-Za-z])\s*)?\\approx(?![A-Za-z])", lambda m: f"{m[1]}=" if m[1] else "", text)
    text = re.sub(r"\\degree(?![A-Za-z])", r"^{\\circ}", text)
    text = _TEXT_NUMBER.sub(lambda m: f"{m[1]}\\text{{{m[2]}}}" if m[2] else m[1], text)
    text = _MAGNITUDE.sub(lambda m: f"\\times 10^{{{_MAGNITUDES[m[1]]}}}" + (f"\\text{{ {m[2]}}}" * bool(m[2])), text)
    text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    text = _RECURRING.sub(_fraction, text)
    text = _NAMES.sub(lambda m: "\\infty " if m[1] == "infinity" else f"\\{m[1]} ", text)
    return with_braces(_GROUPING.sub("", _with_groups(text)))


def undecorated(text: str) -> str:
    r"""Text without what only sets it off: ``**`` or ``$`` around it, ``\\`` and a full stop behind it."""
    text = text.strip()
    while True:
        bare = re.sub(r"(?:\.|\\\\)$", "", text).strip()
        if (inside := _MARKUP.fullmatch(bare)) and not re.search(
            r"\*\*|(?<!\\)\$|\\[()]", inside[inside.lastindex or 0]
        ):
            bare = inside[inside.lastindex or 0].strip()
        if bare == text:
            return text
        text = bare


def as_tex(text: str) -> str:
    """Text with signs of Unicode written in TeX, and digits of every script and full-width forms in ASCII."""
    if text.isascii():
        return text
    text = _RAISED_RUN.sub(lambda run: f"^{{{''.join(_RAISED[c] for c in run[0])}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{''.join(_LOWERED[c] for c in run[0])}}}", text)
    return _with_roots("".join(map(_as_ascii, text)))


def with_thousands(text: str) -> str:
    r"""Text in which numbers have no separators between their thousands: 1,000 and ``1{,}000`` are 1000.

    A plain comma in brackets is left, and one with a space behind it is a list's.
    """
    text = _GROUPING.sub("", text)
    return text if _BRACKET.search(text) else _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)


def with_braces(text: str) -> str:
    r"""Text with braces around the arguments of ``\frac`` and ``\sqrt``: ``\frac12``, ``\frac{\sqrt3}2``, ``\sqrt x``.

    An argument without braces is one digit, letter or command, as in TeX: ``\frac123`` is one half times 3.
    """
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    if "\\frac" not in text and "\\sqrt" not in text:
        return text
    text = _NUMERATOR.sub(r"\\frac{\1}", _RADICAND.sub(r"\\sqrt\1{\2}", text))
    at = len(text)
    while (at := text.rfind("\\frac", 0, at)) >= 0:
        start = at + len("\\frac")
        while text[start : start + 1].isspace():
            start += 1
        end = closing(text, start)
        if end is not None and (bare := _DENOMINATOR.match(text, end + 1)) is not None:
            text = f"{text[: end + 1]}{{{bare[1]}}}{text[bare.end() :]}"
    return text


def closing(text: str, start: int) -> int | None:
    r"""Place of the bracket that closes the one at ``start``; None where none opens there or it stays open.

    ``(`` and ``[`` close with ``)`` or ``]``, as an interval's do; escaped braces are no braces.
    """
    opening = text[start : start + 1]
    if opening not in ("(", "[", "{"):
        return None
    opens, closes = ("{", "}") if opening == "{" else ("([", ")]")
    depth = 0
    for place in range(start, len(text)):
        if opening == "{" and text[place - 1 : place] == "\\":
            continue
        depth += (text[place] in opens) - (text[place] in closes)
        if depth == 0:
            return place
    return None


def _as_ascii(character: str) -> str:
    if character.isascii():
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    if character.isdecimal():
        return str(int(character))
    if character.isspace():
        return " "
    if "\uff01" <= character <= "\uff5e":  # the full-width forms of ASCII
        return unicodedata.normalize("NFKC", character)
    top, slash, bottom = unicodedata.normalize("NFKC", character).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}" if slash and top and bottom else character


def _with_roots(text: str) -> str:
    """Text with ``√12``, ``√x`` and ``√(x+1)`` as roots of the whole number, the letter and the group."""
    for sign in reversed(list(_ROOT_SIGN.finditer(text))):
        head, command, rest = text[: sign.start()], _ROOTS[sign[0]], text[sign.end() :]
        end = closing(rest, 0)
        if end is not None:
            text = f"{head}{command}{{{rest[1:end]}}}{rest[end + 1 :]}"
        elif under := _UNDER_ROOT.match(rest):
            text = f"{head}{command}{{{under[1]}}}{rest[under.end() :]}"
        else:
            text = f"{head}{command} {rest}"
    return text


def _fraction(recurring: re.Match[str]) -> str:
    """Decimal with a recurring part as a fraction: 0.1(6) is (16 - 1) / 90."""
    whole, fixed, cycle = recurring[1], recurring[2], recurring[3] or recurring[4]
    top = int(whole + fixed + cycle) - int(whole + fixed or "0")
    return f"\\frac{{{top}}}{{{(10 ** len(cycle) - 1) * 10 ** len(fixed)}}}"


def _with_groups(text: str) -> str:
    """Text with ``^(...)`` and ``sqrt(...)`` in braces, which TeX needs and people forget."""
    for match in reversed(list(re.finditer(r"(?:\^|\\sqrt)\s*(?=\()", text))):
        end = closing(text, match.end())
        if end is not None:
            text = f"{text[: match.end()]}{{{text[match.end() + 1 : end]}}}{text[end + 1 :]}"
    return text
