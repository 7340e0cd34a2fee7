"""`stepstack record`: keep a finished run's figures in evals/results, for the tables."""

from __future__ import annotations

import argparse

from stepstack.cli.common import add_config

HELP = "keep a finished run's figures in evals/results, for the tables"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from recipes.protocol import load_config
    from stepstack.report import tables

    print(tables.record(load_config(args.name, args.overrides).folder))
    return 0
