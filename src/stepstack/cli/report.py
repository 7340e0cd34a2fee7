"""`stepstack report`: write runs/<name>/report.html anew, also while the run goes on."""

from __future__ import annotations

import argparse

from stepstack.cli.common import add_config

HELP = "write runs/<name>/report.html anew, also while the run goes on"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from recipes import protocol

    cfg = protocol.load_config(args.name, args.overrides)
    print(protocol.load(cfg.recipe).write_report(cfg.folder))
    return 0
