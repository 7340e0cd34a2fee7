"""`stepstack config`: print a config as resolved, or the manual of its keys; without NAME, the menu."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepstack import config
from stepstack.config import CONFIGS, DERIVED, ConfigError

if TYPE_CHECKING:
    from stepstack.keys import Key

HELP = "print a config as resolved, or the manual of its keys; without NAME, the menu"
MODELINE = "# yaml-language-server:"  # names an editor's schema, and says nothing about a config

HEAD = ("key", "value", "origin", "type or choices", "meaning")
WIDEST = (24, 18, 16, 19)  # columns of a terminal's table before the meaning, which takes the rest
NARROW = 24  # columns that the meaning keeps on any terminal
LONGEST = 60  # characters of a value in a terminal's table
PADDED = 40  # a column of a pipe's table is padded up to here, so that one long value does not push all others away


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a config: the stem of a file in configs/, or a path")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than any file")
    parser.add_argument(
        "--explain",
        nargs="?",
        const="",
        metavar="KEY",
        help="every value with its origin, type and meaning; or one key",
    )
    parser.add_argument(
        "--schema",
        nargs="?",
        const="",
        metavar="RECIPE",
        help="a JSON schema of config files for editors, in place of all",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the schema; default: standard output")


def run(args: argparse.Namespace) -> int:
    if args.out and args.schema is None:
        raise ConfigError(f"--out {args.out} is where --schema goes: say --schema too")
    if args.schema is not None:
        return _schema(args)
    if args.explain and "=" in args.explain:  # an override that follows the flag
        args.overrides, args.explain = [*args.overrides, args.explain], ""
    if args.name is None:
        if args.explain is not None:
            raise ConfigError("name a config before the flag, such as: stepstack config orz-tiny --explain")
        return _menu()
    return _print(args)


def _menu() -> int:
    paths = sorted(CONFIGS.glob("*.yaml"), key=lambda path: path.stem)  # orz-32b before orz-32b-anneal
    width = max(len(path.stem) for path in paths) + 2
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for path in paths:
        comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        about = next((line for line in comments if not line.startswith(MODELINE)), "")
        line = f"{path.stem:{width}}{about.removeprefix('#').strip()}"
        print(line if columns is None else textwrap.fill(line, columns, subsequent_indent=" " * width))
    return 0


def _schema(args: argparse.Namespace) -> int:
    from recipes import protocol
    from stepstack.schema import schema

    if args.name is not None:
        raise ConfigError(f"--schema is of recipes, not of the config {args.name}: leave the name out")
    names = [args.schema] if args.schema else protocol.names()
    text = json.dumps(schema({name: protocol.config_class(name) for name in names}), indent=1, allow_nan=False)
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0


def _print(args: argparse.Namespace) -> int:
    from recipes import protocol
    from stepstack.core import preflight

    resolved = protocol.resolve(args.name, args.overrides)
    cfg = protocol.load_config(args.name, args.overrides)
    preflight.refuse_trackers(cfg)
    values = config.explain(cfg, resolved)
    if args.explain is None:
        for key, value, _ in values:
            print(f"{key} = {value}")
        return 0
    if args.explain:
        lines = list(_one(cfg, args.explain, values))
        print("\n".join(lines))
        return 0
    rows = [_row(cfg, *item) for item in values]
    if sys.stdout.isatty():
        _print_for_terminal(rows)
    else:
        print("\n".join(_aligned([HEAD, *rows])))
    return 0


def _row(cfg: Any, name: str, value: Any, source: str) -> Sequence[str]:
    from stepstack import keys

    if source == DERIVED:
        return name, _shown(value), source, "", "Follows from other keys."
    key = keys.find(cfg, name)
    return name, _shown(value), source, key.kind, key.doc


def _shown(value: Any) -> str:
    """A value as YAML has it; a text stands without quotes."""
    if value is MISSING:
        return "(required)"
    return value if isinstance(value, str) and value else json.dumps(config.to_dict(value), ensure_ascii=False)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line a row, for a pipe: nothing is cut or wrapped."""
    widths = [max(min(len(row[column]), PADDED) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _print_for_terminal(rows: Sequence[Sequence[str]]) -> None:
    """A table for each section, all with the same columns: in a section keys are short, and the meaning has room."""
    from rich.table import Table
    from rich.text import Text

    from stepstack.terminal import console

    total = shutil.get_terminal_size((120, 24)).columns
    sections: dict[str, list[Sequence[str]]] = {}
    for name, value, origin, kind, meaning in rows:
        section, _, leaf = name.rpartition(".")
        short = value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
        sections.setdefault(section, []).append((leaf, short, _origin(origin), kind, meaning))
    cells = [row for section in sections.values() for row in section]
    widths = [min(most, max(len(row[i]) for row in [HEAD, *cells])) for i, most in enumerate(WIDEST)]
    out = console(width=max(total, sum(widths) + 2 * len(widths) + NARROW))
    for number, (section, below) in enumerate(sections.items()):
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=number == 0, header_style="dim", pad_edge=False)
        for title, width in zip(HEAD[:-1], widths, strict=True):
            table.add_column(title, width=width, overflow="fold")
        table.add_column(HEAD[-1], overflow="fold", ratio=1)
        for leaf, value, origin, kind, meaning in below:
            table.add_row(Text(leaf, "bold"), value, origin, kind, meaning)
        if section:
            out.print(Text(f"\n{section}", "bold cyan"))
        out.print(table)


def _origin(source: str) -> str:
    """Where a value comes from, in short: the file's name in configs/, or the flag."""
    if source.startswith("stem of "):
        return "name of the file"
    return "flag" if source.startswith("command line ") else source.removeprefix("configs/")


def _one(cfg: Any, name: str, values: Iterable[tuple[str, Any, str]]) -> Iterator[str]:
    """Everything about one key; of a section its keys too, of a union its members."""
    from stepstack import keys

    sources = {dotted: source for dotted, _, source in values}
    key = keys.find(cfg, name)
    yield key.name
    facts = [("type", key.kind), ("default", _shown(key.default))]
    if key.only:
        facts.insert(0, ("value", f"none: this key is one of {key.only}"))
    elif is_dataclass(key.value):
        facts.pop()  # its keys follow, each with its own
    else:
        facts[:0] = [("value", _shown(key.value)), ("origin", sources.get(key.name, "each element"))]
    yield from (f"  {title:8} {text}" for title, text in facts)
    yield f"  {'meaning':8} {key.doc}"
    if not key.sections:
        return
    for cls in key.sections:
        chosen = [choice for choice, member in key.choices.items() if member is cls]
        title = f"type: {' | '.join(chosen)}" if chosen else "keys"
        taken = type(key.value) is cls
        yield f"\n{title}{' (taken)' if taken and len(key.sections) > 1 else ''}  {keys.class_doc(cls)}".rstrip()
        yield from _keys(key, cls, sources, taken)


def _keys(section: Key, cls: type, sources: Mapping[str, str], taken: bool) -> Iterator[str]:
    """The keys of a section: of the one taken with their values, of another with their defaults."""
    from stepstack.keys import keys_of

    rows = []
    for key in keys_of(cls, f"{section.name}."):
        value = getattr(section.value, key.leaf) if taken else key.default
        origin = sources.get(key.name, "") if taken else "default"
        text = "..." if key.sections and value is not None else _shown(value)
        rows.append((f"  {key.leaf}", text, origin, key.kind, key.doc))
    yield from _aligned(rows)
