"""The manual of a config's keys: what each means, which values it takes, what it is by default. No torch.

The texts are the docstrings under the attributes of config classes. They are read from the source, and only where
somebody asks: loading a config needs none of them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic.fields import FieldInfo

from stepstack.config import ConfigError
from stepstack.sections import choices, hints, members
from stepstack.suggestions import unknown_key

NAMES = {int: "int", float: "float", str: "str", bool: "bool", type(None): "null", Any: "any value"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a config.

    ``choices``: the choices of the union that the key is, or whose ``type`` it is, each with its class. ``only``: the
    choice that has this key, where the config has another one, such as "advantage.type=gae".
    """

    name: str
    hint: Any
    doc: str
    default: Any
    value: Any
    choices: Mapping[str, type]
    only: str = ""

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def kind(self) -> str:
        """Type or choices in a few words, bounds included."""
        if self.leaf == "type" and self.choices:
            return " | ".join(self.choices)
        return f"map of type {' | '.join(self.choices)}" if self.choices else describe(self.hint)

    @property
    def sections(self) -> tuple[type, ...]:
        """Config classes whose keys stand below this one: none of a leaf, one of a section, several of a union."""
        return tuple(m for m in members(self.hint) if isinstance(m, type) and dataclasses.is_dataclass(m))


@cache
def attribute_docs(cls: type) -> Mapping[str, str]:
    """Docstrings of the fields of a class, those that it inherits included, each as one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _docs_of_module(base.__module__).get(base.__name__, {})
    return docs


def class_doc(cls: type) -> str:
    """First sentence, or more where they stand in one paragraph, of a class's docstring, as one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


@cache
def _docs_of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """Class -> attribute -> docstring."""
    file = sys.modules[name].__file__
    assert file is not None, name
    tree = ast.parse(Path(file).read_text(encoding="utf-8"), file)
    return {node.name: dict(_documented(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for attribute, following in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            yield attribute.target.id, " ".join(str(following.value.value).split())


def describe(hint: Any) -> str:
    """A type as a reader of YAML names it: "int > 0", "float in [0, 1)", "no | bf16", "list of str"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _bounded(describe(arguments[0]), arguments[1:])
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(describe(member) for member in arguments))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        elements = [describe(argument) for argument in arguments if argument is not Ellipsis]
        one = f"({elements[0]})" if "|" in elements[0] else elements[0]
        if Ellipsis in arguments:
            return f"list of {one}"
        return f"{len(elements)} x {one}" if len(set(elements)) == 1 else f"[{', '.join(elements)}]"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "map"
    return NAMES[hint]


def _bounded(base: str, metadata: tuple[Any, ...]) -> str:
    limits: dict[str, Any] = {}
    for extra in metadata:
        for limit in extra.metadata if isinstance(extra, FieldInfo) else (extra,):
            if dataclasses.is_dataclass(limit):  # such as Gt(gt=0); a pattern is none and has no words here
                limits |= {item.name: getattr(limit, item.name) for item in dataclasses.fields(limit)}
    low = next((name for name in ("gt", "ge") if name in limits), None)
    high = next((name for name in ("lt", "le") if name in limits), None)
    if low and high:
        opening, closing = "(" if low == "gt" else "[", ")" if high == "lt" else "]"
        return f"{base} in {opening}{limits[low]:g}, {limits[high]:g}{closing}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    text = "".join(f" {signs[name]} {limits[name]:g}" for name in (low, high) if name)
    text += f", a multiple of {limits['multiple_of']}" if "multiple_of" in limits else ""
    if "min_length" in limits:
        text += ", not empty" if base == "str" else f", at least {limits['min_length']}"
    return base + text


def keys_of(cls: type, prefix: str) -> Iterator[Key]:
    """The keys of a config class, with the class's own defaults and without values."""
    for leaf, hint in hints(cls).items():
        doc, default = attribute_docs(cls).get(leaf, ""), _default(cls, leaf, MISSING)
        yield Key(f"{prefix}{leaf}", hint, doc, default, MISSING, choices(hint))


def find(config: Any, name: str) -> Key:
    """The key ``name`` (dotted) of a loaded config, or of a choice that it does not take. ConfigError names the nearest
    keys of an unknown one."""
    key = _Walk(config).to(name.split("."))
    if key is None:
        raise ConfigError(unknown_key(name, type(config)))
    return key


class _Walk:
    """The way from a config to one of its keys: value and default of what was reached, and its class."""

    def __init__(self, config: Any):
        self.value, self.default = config, MISSING
        self.classes: tuple[type, ...] = (type(config),)
        self.union: Mapping[str, type] = {}
        self.only = ""

    def to(self, parts: list[str]) -> Key | None:
        key = None
        for depth, part in enumerate(parts):
            if key is not None and typing.get_origin(key.hint) is dict:  # its keys are the user's own
                value = key.value.get(part, MISSING) if isinstance(key.value, Mapping) else MISSING
                return dataclasses.replace(key, name=".".join(parts), value=value, default=MISSING)
            key = self._step(".".join(parts[: depth + 1]), part)
            if key is None:
                return None
        return key

    def _step(self, name: str, part: str) -> Key | None:
        taken = (type(self.value),) if dataclasses.is_dataclass(self.value) else ()
        owner = next((cls for cls in (*taken, *self.classes) if part in hints(cls)), None)
        if owner is None:
            return None
        if owner not in taken and len(self.union) > 1:
            choice = next(choice for choice, cls in self.union.items() if cls is owner)
            self.only = f"{name.rpartition('.')[0]}.type={choice}"
        hint = hints(owner)[part]
        self.default = _default(owner, part, self.default)
        self.value = _below(self.value, part)
        union = self.union if part == "type" else choices(hint)
        key = Key(name, hint, attribute_docs(owner).get(part, ""), self.default, self.value, union, self.only)
        self.classes, self.union = key.sections, choices(hint)
        return key


def _below(value: Any, part: str) -> Any:
    """The value of an attribute, of each element of a list; MISSING where there is none."""
    if isinstance(value, tuple):
        return tuple(_below(element, part) for element in value)
    names = [item.name for item in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    return getattr(value, part) if part in names else MISSING


def _default(owner: type, part: str, above: Any) -> Any:
    """The value in the section's default; else the class's own default."""
    if type(above) is owner:
        return getattr(above, part)
    item = next(item for item in dataclasses.fields(owner) if item.name == part)
    return item.default_factory() if item.default_factory is not MISSING else item.default
