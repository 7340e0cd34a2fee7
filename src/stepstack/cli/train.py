"""`stepstack train`: train in this process (what the launch line runs in each process)."""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback

from stepstack.cli.common import add_config, quiet_libraries
from stepstack.core.parent import end_with_parent

HELP = "train in this process (what the launch line runs in each process)"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="check the config and print what a run would do")
    parser.add_argument("--stop-after", type=int, metavar="STEP", help="save and stop after this step; resumable")
    parser.add_argument(
        "--end-with-parent",
        action="store_true",
        help="save and end when the process that started this one is gone (the launch line says it)",
    )


def run(args: argparse.Namespace) -> int:
    from recipes import protocol
    from stepstack.core import preflight

    cfg = protocol.load_config(args.name, args.overrides)
    preflight.refuse_trackers(cfg)
    recipe = protocol.load(cfg.recipe)
    if args.dry_run:
        for key, value in recipe.describe(cfg).items():
            print(f"{key:32} {value}")
        return 0
    if args.end_with_parent:
        end_with_parent()
    from stepstack.core.run import Run

    quiet_libraries()
    run = Run(cfg, stop_after=args.stop_after, command=shlex.join(["stepstack", "launch", args.name, *args.overrides]))
    try:
        recipe.train(run)
    except BaseException as error:  # raised again: only the status of the run is written, however it ends
        lost = run.machines.lost(error) if isinstance(error, RuntimeError) else None
        if lost and run.accelerator.is_local_main_process:
            print(f"stepstack train: {lost}", file=sys.stderr, flush=True)
        if run.live:  # the end of a run that stopped as it was asked to is written already
            run.live.failed("".join(traceback.format_exception_only(error)).strip())
        raise
    return 0
