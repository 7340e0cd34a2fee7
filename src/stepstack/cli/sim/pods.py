"""`stepstack sim pods`: waste, traffic, cost and MFU of InfinitePOD and its rivals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stepstack.config import ROOT, ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

HELP = "GPU waste, cross-ToR traffic, cost and MFU of InfinitePOD and its rivals, under real and made-up faults"
Number = TypeVar("Number", int, float)
RECORD = ROOT / "evals" / "results" / "pods.json"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="waste (needs --trace), faults, traffic, cost, mfu; default: all one can",
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="fault_trace.json of stepfun-ai/InfiniteHBD-Trace")
    parser.add_argument("--nodes", type=int, default=720, help="nodes of 4 GPUs in waste and faults (720)")
    parser.add_argument("--tp", default="8,16,32,64", help="TP sizes (8,16,32,64)")
    parser.add_argument("--rates", default="0,.01,.02,.03,.05,.07,.1", help="fault ratios (0,.01,.02,.03,.05,.07,.1)")
    parser.add_argument("--draws", type=int, default=1000, help="fault states at each ratio (1000)")
    parser.add_argument(
        "--hops", type=int, default=2, metavar="K", help="nodes that a transceiver reaches, in traffic (2)"
    )
    parser.add_argument("--tor-nodes", type=int, default=2048, help="nodes in traffic (2048)")
    parser.add_argument("--per-tor", type=int, default=8, help="nodes under a ToR switch (8)")
    parser.add_argument("--dp", default="2,4,8", help="groups of a DP set in traffic (2,4,8)")
    parser.add_argument("--share", type=float, default=0.85, help="share of the nodes that the job takes (.85)")
    parser.add_argument("--tor-draws", type=int, default=2, help="placements at each ratio in traffic (2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write index.html and every plot as SVG and PNG there")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--record", action="store_true", help="keep it in evals/results/pods.json, for the tables")


def run(args: argparse.Namespace) -> int:
    from rich.progress import Progress
    from rich.table import Table

    from stepstack.simulation.pods import study
    from stepstack.terminal import console

    settings = study.Settings(
        trace=args.trace,
        nodes=args.nodes,
        tps=_numbers("--tp", args.tp, int),
        draws=args.draws,
        hops=args.hops,
        rates=_numbers("--rates", args.rates, float),
        tor_nodes=args.tor_nodes,
        per_tor=args.per_tor,
        dps=_numbers("--dp", args.dp, int),
        share=args.share,
        tor_draws=args.tor_draws,
    )
    parts = args.parts or [part for part in study.PARTS if part != "waste" or args.trace]
    if args.record and set(parts) != set(study.PARTS):
        raise ConfigError("--record keeps all parts together: name none, and give --trace")
    with Progress(console=console(stderr=True), transient=True) as bar:
        results = study.run(parts, settings, lambda what, units: _advance(bar, what, units))
    if args.record:
        study.record(results, RECORD)
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        out = console()
        for title, head, rows in study.tables(results):
            table = Table(*head, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            out.print(table)
    if args.out:
        console(stderr=True).print(f"-> {study.write_page(results, args.out)}")
    return 0


def _advance(bar: Progress, what: str, units: int) -> Callable[[], None]:
    task = bar.add_task(what, total=units)
    return lambda: bar.advance(task)


def _numbers(flag: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        numbers = tuple(kind(word) for word in text.split(",") if word)
    except ValueError:
        raise ConfigError(f"{flag} {text!r}: must be numbers with commas between") from None
    if not numbers:
        raise ConfigError(f"{flag}: name at least one")
    return numbers
