"""`stepstack plan contextparallel`: the plan of a profile, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "which rank computes which heads and queries of sparse attention, layer by layer (DSV)"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="lengths, sparsity and machines: see configs/plans")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than the file")
    parser.add_argument("--json", action="store_true", help="the whole plan, with every rank's bytes and seconds")


def run(args: argparse.Namespace) -> int:
    from rich.progress import track

    from stepstack import config
    from stepstack.planning.contextparallel.job import ContextJob, as_json, make_plan, table
    from stepstack.terminal import console

    job = config.read(ContextJob, args.file, args.overrides)
    # To stderr: a progress bar must not get into JSON.
    bar = console(stderr=True)
    plan = make_plan(job, lambda layers: track(layers, "layers", console=bar, transient=True))
    print(json.dumps(as_json(job, plan), indent=1) if args.json else table(job, plan), end="\n" if args.json else "")
    return 0
