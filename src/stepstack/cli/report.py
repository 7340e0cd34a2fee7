"""`stepstack report`: write runs/<name>/report.html anew, also of a run that goes on; without a name, the index."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepstack.config import ROOT, RUNS, ConfigError

HELP = "write runs/<name>/report.html anew, also while the run goes on; without a name, the index of all runs"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a config: the stem of a file in configs/, or a path; none: all runs")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than any file")
    parser.add_argument("--runs", type=Path, default=ROOT / RUNS, help="folder of runs of the index; default: runs")


def run(args: argparse.Namespace) -> int:
    if args.name is None:
        from stepstack.harness.training import index

        if not any(args.runs.glob("*/config.json")):
            raise ConfigError(f"{args.runs} holds no run: train one, or give the folder of your runs (--runs FOLDER)")
        print(index.write(args.runs))
        return 0
    from recipes import protocol

    cfg = protocol.load_config(args.name, args.overrides)
    print(protocol.load(cfg.recipe).write_report(cfg.folder))
    return 0
