"""`stepstack vbench`: let VBench-I2V score an evaluation of vbench_i2v."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepstack.cli.common import add_data

HELP = "let VBench-I2V score an evaluation of vbench_i2v"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="runs/<name>/evals/<label>/vbench_i2v-...")
    python = "interpreter of VBench's own environment (scripts/vbench_venv.sh); without it, results are only read"
    parser.add_argument("--python", type=Path, help=python)
    add_data(parser)
    parser.add_argument("--device", default="cuda", help="device that VBench computes on")


def run(args: argparse.Namespace) -> int:
    from recipes.stepvideo.evaluation import vbench
    from stepstack.terminal import console

    if args.python is not None:
        vbench.run(args.python, args.data / vbench.CLONE, args.folder, args.device)
    console().print(vbench.conclude(args.folder))
    return 0
