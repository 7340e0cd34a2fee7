"""Types of config values that have bounds, and the values that no config may hold. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a moving average: the weight of the old value
LearningRate = Annotated[float, Field(ge=0, le=10)]
Weight = Annotated[float, Field(ge=0, le=1e6)]  # of a term of a loss
Magnitude = Annotated[float, Field(gt=0, le=1e6)]  # a temperature, a deviation, a shift, a distance
WidthOf4Heads = Annotated[int, Field(gt=0, multiple_of=8)]  # width of 4 attention heads, each of pairs of numbers
Text = Annotated[str, Field(min_length=1)]

LARGEST = 2**53  # the last whole number up to which JSON's readers and floats hold every one
HALF = "half of a surrogate pair (\\ud800 to \\udfff) is no text: write the character itself"


def impossible(value: Any, name: str, above: tuple[int, ...] = ()) -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong) of each value at or below ``name`` that no key can take, whatever its type: numbers
    that are not finite or too large for JSON, text that is no Unicode, and maps or lists that hold themselves."""
    if isinstance(value, Mapping | list):
        if id(value) in above:
            yield name, "it holds itself (an alias of YAML): write it out"
            return
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            below = printable(f"{name}.{key}" if name else str(key))
            if isinstance(key, str) and _surrogate(key):
                yield below, HALF
            yield from impossible(item, below, (*above, id(value)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, f"{value} is no finite number: give one, or null where the key allows it"
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield name, f"a whole number of {value.bit_length()} bits: the largest is {LARGEST}"
    elif isinstance(value, str) and _surrogate(value):
        yield name, HALF


def printable(text: str) -> str:
    """The text with halves of surrogate pairs, which no terminal can print, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _surrogate(text: str) -> bool:
    return printable(text) != text


def without_credentials(shown: str) -> str:
    """A value or its source as an error shows it: urls without what may be a password or a key."""
    shown = re.sub(r"[^\s'\"/:=]+:[^\s'\"]*@", "***@", shown)
    return re.sub(r"(:[^\s'\"?#]*)[?#][^\s'\"]*", r"\1?***", shown)
