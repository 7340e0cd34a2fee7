r"""Notation that algebra drops though it says something: the base of a number, a unit, a list against a point.

``contradict`` finds two texts that differ there, so that an algebraic grader need not be asked. The conventions:

* A number in a base equals the same digits in the same base only: ``204_5`` is no ``204_6`` and no ``204``.
* A unit may be left out, but two different ones are two answers, unconverted: 5 minutes are no 5 hours, and 1 km is
  no 1000 m. A noun that is counted (``73 apples``) is no unit and is never compared.
* ``(1,2)`` is a point or an interval, ``1,2`` a list of two answers.
"""

from __future__ import annotations

import re

from stepstack.scoring.maths.spelling import as_tex, closing

_BASED = re.compile(
    r"(?<![A-Za-z\\\d])(?P<digits>\d[0-9A-Fa-f]*|[A-F][0-9A-F]+)_"
    r"(?:(?P<plain>\d+)|\{\s*(?P<braced>\d+)\s*\}|\{?\\text\{(?P<word>\d+|[a-z]+)\}\}?)"
)
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}
_BASES |= {"ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"}

# One name for each unit; a power or a quotient is a tuple of these.
_UNITS = {
    word: words.split()[0]
    for words in (
        "meter meters metre metres m",
        "kilometer kilometers kilometre kilometres km",
        "centimeter centimeters centimetre centimetres cm",
        "millimeter millimeters millimetre millimetres mm",
        "inch inches in",
        "foot feet ft",
        "yard yards yd",
        "mile miles mi",
        "second seconds sec secs s",
        "minute minutes min mins",
        "hour hours hr hrs h",
        "day days",
        "week weeks",
        "month months",
        "year years yr yrs",
        "gram grams g gm",
        "kilogram kilograms kg kgs",
        "milligram milligrams mg",
        "ton tons tonne tonnes",
        "pound pounds lb lbs",
        "ounce ounces oz",
        "liter liters litre litres l",
        "milliliter milliliters millilitre millilitres ml",
        "gallon gallons gal",
        "cent cents",
        "dollar dollars usd",
        "euro euros eur",
        "rupee rupees rs",
        "degree degrees deg",
        "radian radians rad",
        "fahrenheit f",
        "celsius c",
        "newton newtons n",
        "joule joules j",
        "watt watts w",
        "volt volts v",
        "am",
        "pm",
    )
    for word in words.split()
}
_SPEEDS = {"mph": ("mile", "hour"), "kmh": ("kilometer", "hour"), "kph": ("kilometer", "hour")}
_POWERS = {"sq": "2", "square": "2", "squared": "2", "cubic": "3", "cubed": "3", "cu": "3"}
_CURRENCY = {"\\$": "dollar", "€": "euro"}

_IN_TEXT = re.compile(
    r"(?<=[\d}).\s])\s*\\(?:text|textrm|mathrm|mbox)\s*\{([A-Za-z .,^/23{}²³\-]*?)\}\s*(?:\^\s*\{?([23])\}?)?\.?$"
)
_BARE = re.compile(r"(?<=[\d}).])\s*([A-Za-z]{2,}(?:[ /]+[A-Za-z.]+){0,2})\s*(?:\^\s*\{?([23])\}?)?\.?$")
_DEGREES = re.compile(r"(?:\^\s*\{?\\circ\}?|\\degree)$")

_HEAD = re.compile(r"^[^=<>]{0,12}=\s*(?=[(\[])")
_AND = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}")


def contradict(gold: str, answer: str) -> bool:
    """Whether two texts differ in a base, in a unit that both name, or one is a point and the other a list."""
    gold, answer = as_tex(gold).strip(), as_tex(answer).strip()
    if ("_" in gold or "_" in answer) and bases(gold) != bases(answer):
        return True
    if (left := unit(gold)) and (right := unit(answer)) and left != right:
        return True
    return {_shape(gold), _shape(answer)} == {"point", "list"}


def bases(text: str) -> list[tuple[str, str]]:
    """Pairs (digits, base) of the numbers in another base, sorted."""
    found = []
    for match in _BASED.finditer(text):
        base = match["plain"] or match["braced"] or match["word"]
        found.append((match["digits"].upper(), _BASES.get(base, base)))
    return sorted((digits, base) for digits, base in found if base.isdecimal())


def without_bases(text: str) -> str:
    """Text in which a number in another base is its digits alone."""
    return _BASED.sub(r"\g<digits>", text) if "_" in text else text


def unit(text: str) -> tuple[str, ...] | None:
    """Unit of a text as the sorted names of its parts and its power; None where it names none that is known."""
    match = _IN_TEXT.search(text) or _BARE.search(text)
    if match is None:
        currency = next((name for sign, name in _CURRENCY.items() if text.startswith(sign)), None)
        return (currency,) if currency else ("degree",) if _DEGREES.search(text) else None
    words = re.findall(r"[a-z]+|[23]", match[1].lower().replace(".", "").replace("²", "2").replace("³", "3"))
    names: list[str] = []
    for word in words:
        if word in _SPEEDS:
            names.extend(_SPEEDS[word])
        elif word in _UNITS or word in _POWERS or word in ("2", "3"):
            names.append(_UNITS.get(word) or _POWERS.get(word, word))
        elif word != "per":
            return None  # a sentence or a noun
    powers = sorted(name for name in [*names, *filter(None, [match[2]])] if name in ("2", "3"))
    kinds = sorted(name for name in names if name not in ("2", "3"))
    return (*kinds, *powers) if kinds else None


def _shape(text: str) -> str:
    """Whether a text is a "point" (an interval too), a "list" of plain answers, or "other"."""
    text = _HEAD.sub("", re.sub(r"\\(?:left|right)(?![a-z])|\\[,;!: ]|\$", "", text)).strip()
    if text[:1] in ("(", "["):
        whole = closing(text, 0) == len(text) - 1
        return "point" if whole and _commas(text[1:-1]) else "other"
    plain = not re.search(r"[=<>\[\]()]|\\(?:[lg]e|in|text|mbox|begin|cup|\{)(?![a-z])", _AND.sub(",", text))
    return "list" if plain and _commas(_AND.sub(",", text)) else "other"


def _commas(text: str) -> bool:
    """Whether a comma outside of braces separates two parts; one between thousands does not."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|\{,\}", "", text)
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            return True
    return False
