"""`stepstack train`: train in this process (what the launch line runs in each process)."""

from __future__ import annotations

import argparse

from stepstack.cli.common import add_config, quiet_libraries

HELP = "train in this process (what the launch line runs in each process)"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="check the config and print what a run would do")
    parser.add_argument("--stop-after", type=int, metavar="STEP", help="save and stop after this step; resumable")


def run(args: argparse.Namespace) -> int:
    from recipes import protocol

    cfg = protocol.load_config(args.name, args.overrides)
    recipe = protocol.load(cfg.recipe)
    if args.dry_run:
        for key, value in recipe.describe(cfg).items():
            print(f"{key:32} {value}")
        return 0
    from stepstack.core.run import Run

    quiet_libraries()
    recipe.train(Run(cfg, stop_after=args.stop_after))
    return 0
