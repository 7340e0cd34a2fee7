"""The classes and defaults behind the keys of a config class. No torch."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Union


@cache
def hints(cls: type) -> Mapping[str, Any]:
    """Annotated types of the fields of a config class."""
    annotated = typing.get_type_hints(cls, include_extras=True)
    return {item.name: annotated[item.name] for item in dataclasses.fields(cls)}


def members(hint: Any) -> tuple[Any, ...]:
    """Members of a union, the type of its elements for a list of sections, else the type alone."""
    if typing.get_origin(hint) is Annotated:
        return members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(part for member in typing.get_args(hint) for part in members(member))
    elements = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else ()
    return elements if elements and dataclasses.is_dataclass(elements[0]) else (hint,)


def choices(hint: Any) -> dict[str, type]:
    """Value of ``type`` -> class of a union of sections; none where there is nothing to choose."""
    by_type: dict[str, type] = {}
    for member in members(hint):
        if isinstance(member, type) and dataclasses.is_dataclass(member) and "type" in hints(member):
            by_type.update(dict.fromkeys(typing.get_args(hints(member)["type"]), member))
    return by_type if len(by_type) > 1 else {}


def section(hint: Any, value: Any) -> type | None:
    """Config class that a key's value is of: of a union the one that its ``type`` chooses. None where it is no map, or
    names no class."""
    if not isinstance(value, Mapping):
        return None
    classes = [one for one in members(hint) if isinstance(one, type) and dataclasses.is_dataclass(one)]
    if len(classes) == 1:
        return classes[0]
    kind = value.get("type")
    return choices(hint).get(kind) if isinstance(kind, str) else None


def defaults(cls: type) -> dict[str, Any]:
    """The defaults of a config class as the map that a file would hold; required fields are absent."""
    found = {}
    for item in dataclasses.fields(cls):
        if item.default is not dataclasses.MISSING:
            found[item.name] = plain(item.default)
        elif item.default_factory is not dataclasses.MISSING:
            found[item.name] = plain(item.default_factory())
    return found


def plain(value: Any) -> Any:
    """Plain JSON values of a config, keys in field order."""
    return json.loads(json.dumps(value, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if not dataclasses.is_dataclass(value):
        return str(value)
    return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
