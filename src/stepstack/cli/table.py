"""`stepstack table`: generate the tables in the READMEs from evals/results."""

from __future__ import annotations

import argparse

HELP = "generate the tables in the READMEs from evals/results"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a table is stale")
    parser.add_argument("table", nargs="?", help="print this table of evals/tables instead")
    parser.add_argument("--format", choices=("md", "tex", "html"), default="md", help="format of the printed table")


def run(args: argparse.Namespace) -> int:
    from stepstack.report import tables

    if args.table is not None:
        print(tables.render(args.table, args.format), end="")
        return 0
    return tables.generate(check=args.check)
