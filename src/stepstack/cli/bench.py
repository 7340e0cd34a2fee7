"""`stepstack bench`: measure against a peer, or a plan; writes evals/results."""

from __future__ import annotations

import argparse

from stepstack.config import ROOT

BENCHES = ROOT / "evals" / "bench"

HELP = "measure against a peer, or a plan; writes evals/results"


def options(parser: argparse.ArgumentParser) -> None:
    names = sorted(file.stem.replace("_", "-") for file in BENCHES.glob("[a-z]*.py"))
    parser.add_argument("bench", choices=names)
    parser.add_argument("options", nargs="*", metavar="key=value", help="whole numbers, such as rounds=20")


def run(args: argparse.Namespace) -> int:
    """A bench is a file with ``measure(**options)``, which returns the figures, and ``show(figures)``."""
    import inspect
    from importlib import import_module

    from stepstack.report import jsonl

    bench = import_module(f"evals.bench.{args.bench.replace('-', '_')}")
    given_options = {key: int(value) for key, _, value in (option.partition("=") for option in args.options)}
    parameters = inspect.signature(bench.measure).parameters
    if unknown := given_options.keys() - parameters:
        raise ValueError(
            f"bench {args.bench} has no option {', '.join(sorted(unknown))}: there are {', '.join(parameters)}"
        )
    figures = bench.measure(**given_options)
    file = ROOT / "evals" / "results" / f"bench-{args.bench}.json"
    jsonl.write_json_atomic(file, figures)
    bench.show(figures)
    print(f"-> {file}")
    return 0
