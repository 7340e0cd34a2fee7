"""`stepstack config`: print a config as resolved; without NAME, the menu."""

from __future__ import annotations

import argparse

from stepstack import config
from stepstack.config import CONFIGS

HELP = "print a config as resolved; without NAME, the menu"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a config: the stem of a file in configs/, or a path")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than any file")
    parser.add_argument("--explain", action="store_true", help="with the file or flag that set each value")


def run(args: argparse.Namespace) -> int:
    from recipes import protocol

    if args.name is None:
        for path in sorted(CONFIGS.glob("*.yaml")):
            first = path.read_text().partition("\n")[0]
            print(f"{path.stem:20} {first.removeprefix('#').strip()}")
        return 0
    resolved = config.resolve(args.name, args.overrides)
    cfg = protocol.load_config(args.name, args.overrides)
    for key, value, source in config.explain(cfg, resolved):
        print(f"{key} = {value}" + (f"   # {source}" if args.explain else ""))
    return 0
