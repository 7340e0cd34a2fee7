"""`stepstack plan rollout`: devices of generation and training, and the split of prompts by length."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "devices of generation and of training in RL, long prompts apart, and when generation grows (StreamRL)"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="lengths, times and machines: see configs/plans")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than the file")
    parser.add_argument("--json", action="store_true", help="the whole plan, with every decision of growth")


def run(args: argparse.Namespace) -> int:
    from stepstack import config
    from stepstack.planning.rollout.job import RolloutJob, as_json, make_plan, table

    job = config.read(RolloutJob, args.file, args.overrides)
    plan = make_plan(job)
    print(json.dumps(as_json(plan), indent=1) if args.json else table(job, plan), end="\n" if args.json else "")
    return 0
