"""``python -m evals.gpu --minutes 9 --out FOLDER``: all that a GPU can show in that time (`make gpu`)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from evals.gpu.day import MINUTES, Day
from evals.gpu.packages import ROOT
from evals.gpu.steps import STEPS


def main() -> int:
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(prog="python -m evals.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of the whole day; budgets follow")
    parser.add_argument("--out", type=Path, default=ROOT / "evals" / "results" / "gpu", help="folder of the records")
    parser.add_argument("--steps", default=",".join(names), help=f"which of {', '.join(names)}, by commas")
    args = parser.parse_args()
    chosen = args.steps.split(",")
    if unknown := set(chosen) - set(names):
        parser.error(f"--steps: no step {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    os.environ["HF_HUB_OFFLINE"] = "1"  # for the steps: nothing is downloaded in the time of a GPU
    steps = [step for step in STEPS if step.name in chosen]
    return Day(steps, 60 * args.minutes, args.out.resolve()).run()


if __name__ == "__main__":
    sys.exit(main())
