"""`stepstack data`: prepare the data of a config, with a manifest of hashes, or show rows as they are learned."""

from __future__ import annotations

import argparse

from stepstack.cli.common import add_config

HELP = "prepare the data of a config, with a manifest of hashes; --show N prints the tokens of its first rows"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="print the tokens of the first N rows, learned ones coloured; nothing is written",
    )


def run(args: argparse.Namespace) -> int:
    from recipes import protocol

    cfg = protocol.load_config(args.name, args.overrides)
    if args.show is None:
        print(protocol.load(cfg.recipe).prepare(cfg))
        return 0
    rows = protocol.rows_of(cfg, args.show)
    if rows is None:
        print(f"recipe {cfg.recipe} learns no rows of tokens from data, so there is nothing to show")
        return 0
    from stepstack.report.tokens import print_rows
    from stepstack.terminal import console

    print_rows(rows, console())
    return 0
