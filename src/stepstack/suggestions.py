"""The keys that were probably meant by one that a config does not have. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from typing import Any


def unknown_key(key: str, cls: type) -> str:
    """Error about an unknown key that suggests its name further down, a similar sibling, or its name elsewhere."""
    known, (parent, _, leaf) = sorted(set(_keys(cls))), key.rpartition(".")
    if key in known:
        return f"unknown key {key!r}: another {parent}.type has it; set {parent}.type too"
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    same = [k for k in known if k.rpartition(".")[2] == leaf]
    near = [k for k in same if parent and k.startswith(f"{parent}.")] or difflib.get_close_matches(key, siblings, 1)
    near = (near or same or difflib.get_close_matches(key, known, n=1))[:4]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ": `config NAME --explain` lists them"
    return f"unknown key {key!r}{hint}"


def _keys(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all fields of a config class, those of every member of a union included."""
    if not dataclasses.is_dataclass(cls):
        for member in typing.get_args(cls):
            yield from _keys(member, prefix)
        return
    for name, hint in typing.get_type_hints(cls, include_extras=False).items():
        if name in cls.__dataclass_fields__:
            yield f"{prefix}{name}"
            yield from _keys(hint, f"{prefix}{name}.")
