"""`stepstack data`: prepare the data of a config, with a manifest of hashes."""

from __future__ import annotations

import argparse

from stepstack.cli.common import add_config

HELP = "prepare the data of a config, with a manifest of hashes"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from recipes import protocol

    cfg = protocol.load_config(args.name, args.overrides)
    print(protocol.load(cfg.recipe).prepare(cfg))
    return 0
