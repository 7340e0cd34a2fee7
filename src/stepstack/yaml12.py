"""The YAML that configs are written in: scalars of version 1.2, which are JSON's, and no key twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

LONGEST = 400  # digits of a whole number; Python reads no more than 4,300


class Loader(yaml.SafeLoader):
    """`1e-6` is a number, `no` and `2026-11-23` are strings; a repeated key is an error of its line."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                mark = node.value[number][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", mark)
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > LONGEST:
            problem = f"a number of {len(node.value)} digits"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return int(node.value, 16 if node.value.startswith("0x") else 10)


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_whole_number)
Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def parse(text: str) -> tuple[Any, dict[str, int]]:
    """The value that a text holds, None for an empty one, and the line, from 1, of every dotted key and list item.
    YAMLError where it is no YAML."""
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        return (loader.construct_document(node) if node else None), dict(_lines(node))
    except RecursionError:
        raise yaml.YAMLError("maps or lists in one another more than some hundred deep") from None


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    children: list[tuple[str, yaml.Node, yaml.Node]] = []  # name, where it stands, value
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), item, item) for index, item in enumerate(node.value)]
    for name, place, value in children:
        yield f"{prefix}{name}", place.start_mark.line + 1
        yield from _lines(value, f"{prefix}{name}.")
