"""The manual of keys: docstrings of attributes, types in words, defaults and choices."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, NonNegativeInt, PositiveFloat

from stepstack import keys
from stepstack.bounds import Decay, Fraction
from stepstack.config import ConfigError, RunConfig, Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain(Strict):
    """A choice.

    More about it.
    """

    type: Literal["plain"] = "plain"
    """Choice of the part: plain."""
    width: NonNegativeInt = 3
    """Width of the part,
    in pixels."""
    bare: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wide(Plain):
    """Another choice."""

    type: Literal["wide", "wider"] = "wide"  # type: ignore[assignment]
    height: PositiveFloat
    """Height of the part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(RunConfig):
    part: Annotated[Plain | Wide, Field(discriminator="type")] = Plain(width=5)
    """Part."""
    maybe: Plain | None = None
    """Part or none."""
    many: tuple[Plain, ...] = ()
    """Parts."""


def test_docs_are_those_under_the_attributes_on_one_line_and_inherited():
    assert keys.attribute_docs(Wide) == {
        "type": "Choice of the part: plain.",
        "width": "Width of the part, in pixels.",
        "options": "Options.",
        "height": "Height of the part.",
    }
    assert "seed" in keys.attribute_docs(Config)


def test_the_class_says_its_first_paragraph():
    assert keys.class_doc(Plain) == "A choice."


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (str | None, "str | null"),
        (NonNegativeInt, "int >= 0"),
        (PositiveFloat, "float > 0"),
        (PositiveFloat | None, "float > 0 | null"),
        (Fraction, "float in [0, 1]"),
        (Decay, "float in [0, 1)"),
        (Annotated[float, Field(gt=0, lt=1)], "float in (0, 1)"),
        (Annotated[int, Field(ge=-1)], "int >= -1"),
        (Annotated[int, Field(le=3)], "int <= 3"),
        (Literal["a", "b"], "a | b"),
        (Literal[0, 1], "0 | 1"),
        (tuple[str, ...], "list of str"),
        (tuple[Literal["a", "b"], ...], "list of (a | b)"),
        (Annotated[tuple[float, ...], Field(min_length=2)], "list of float, at least 2"),
        (tuple[int, int], "2 x int"),
        (tuple[int, float], "[int, float]"),
        (tuple[tuple[int, int], ...], "list of 2 x int"),
        (dict[str, float], "map"),
        (Plain, "map"),
        (bool, "bool"),
    ],
)
def test_types_in_words(hint, text):
    assert keys.describe(hint) == text


def of(name: str, **values: Any) -> keys.Key:
    return keys.find(Config(recipe="x", **values), name)


def test_a_key_has_value_default_and_text():
    key = of("part.width", part=Plain(width=9))
    assert (key.value, key.default, key.kind, key.doc) == (9, 5, "int >= 0", "Width of the part, in pixels.")


def test_the_default_of_another_choice_is_that_of_its_class():
    assert of("part.width", part=Wide(height=1.0)).default == 3
    assert of("part.height", part=Wide(height=1.0)).default is MISSING


def test_a_union_and_its_type_list_the_choices():
    assert of("part").kind == "map of type plain | wide | wider"
    assert of("part.type").kind == "plain | wide | wider"
    assert of("part").sections == (Plain, Wide)


def test_a_key_of_a_choice_that_is_not_taken():
    key = of("part.height")
    assert (key.value, key.only) == (MISSING, "part.type=wide")
    assert of("part.width").only == ""


def test_keys_below_null_and_below_a_list():
    assert of("maybe.width").value is MISSING
    assert of("maybe.width").default == 3
    assert of("many.width", many=(Plain(), Plain(width=7))).value == (3, 7)
    assert of("many").kind == "list of map"


def test_what_stands_below_a_map_is_the_maps():
    key = of("part.options.speed", part=Plain(options={"speed": 2}))
    assert (key.name, key.value, key.doc) == ("part.options.speed", 2, "Options.")


@pytest.mark.parametrize("name", ["prt", "part.widht", "seed.x", "part.width.x", ""])
def test_an_unknown_key(name):
    with pytest.raises(ConfigError, match="unknown key"):
        of(name)


def test_an_unknown_key_names_its_neighbour():
    with pytest.raises(ConfigError, match=r"unknown key 'part\.widht'; did you mean 'part\.width'\?"):
        of("part.widht")
