"""Layers of a config, merged key by key, with the defaults of its classes. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from stepstack.sections import defaults, hints, section


def filled(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values with the defaults of their sections, merged key by key: policy.optim.lr=1 keeps the rest of a default."""
    values = defaults(cls)
    merge(values, given, {}, "", {}, values)
    for name, hint in hints(cls).items():
        if below := section(hint, values.get(name)):
            values[name] = filled(below, values[name])
    return values


def merge(
    into: dict,
    layer: Mapping,
    sources: dict[str, str],
    source: str,
    where: Mapping[str, str],
    known: Mapping,
    prefix: str = "",
) -> None:
    """Maps merge key by key; a map whose ``type`` changes is replaced whole, so that no key of another choice remains.
    ``known``: ``into`` with defaults, for the type of a map that names none. ``where`` has the places of keys in
    ``source``, as far as it has lines."""
    for key, value in layer.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            whole = known[key] if isinstance(known.get(key), Mapping) else into[key]
            if value.get("type", whole.get("type")) == whole.get("type"):
                merge(into[key], value, sources, source, where, whole, f"{dotted}.")
                continue
        for stale in [k for k in sources if k == dotted or k.startswith(f"{dotted}.")]:
            del sources[stale]
        into[key] = json.loads(json.dumps(value)) if isinstance(value, Mapping | list) else value
        sources |= {name: where.get(name, source) for name in _names(value, dotted)}


def _names(value: Any, name: str) -> Iterator[str]:
    """``name`` and the dotted names of all that is in ``value``."""
    yield name
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _names(item, f"{name}.{key}")
