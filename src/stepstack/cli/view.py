"""`stepstack view`: a page with every sample of one evaluation, or two side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "a page with every sample of one evaluation, or two side by side"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", help="runs/<name>/evals/<label>, or one task's folder in it")
    parser.add_argument("--out", default="samples.html", help="the page to write")


def run(args: argparse.Namespace) -> int:
    from stepstack.harness.summary import places_of
    from stepstack.report import viewer

    print(viewer.write(Path(args.out), places_of(args.folders)))
    return 0
