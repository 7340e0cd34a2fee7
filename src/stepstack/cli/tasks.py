"""`stepstack tasks`: the menu of tasks; get their data, give them to lm-eval."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepstack.cli.common import add_data

HELP = "the menu of tasks; get their data, give them to lm-eval"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", nargs="*", metavar="NAME", help="a task, or a benchmark with --fetch; default: all")
    parser.add_argument("--fetch", action="store_true", help="download the benchmarks' rows into --data")
    parser.add_argument("--from", dest="source", help="a file or folder that has them, in place of a download")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write them for `lm_eval --include_path DIR`")
    add_data(parser)


def run(args: argparse.Namespace) -> int:
    from data.sets import benchmarks
    from stepstack.harness import task

    if args.fetch:
        names = args.tasks or [benchmark.name for benchmark in benchmarks.BENCHMARKS]
        for file in benchmarks.fetch(names, args.data, args.source):
            print(file)
        return 0
    tasks = [task.load(name) for name in args.tasks or task.menu_of()]
    if args.export:
        from stepstack.harness.lm_eval import export

        print(export.export(tasks, args.export, args.data))
        return 0
    for one in tasks:
        print(f"{one.name:24} v{one.version}  {one.about}")
    return 0
