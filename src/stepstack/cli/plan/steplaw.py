"""`stepstack plan steplaw`: learning rate and batch of a pre-training run; fits of tables of runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepstack.planning.steplaw.laws import LawInputs

HELP = "learning rate, batch and schedule of a pre-training run by its size (Step Law); fit such laws"
TOKENS = 1  # columns: a batch that counts tokens


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--params", type=float, metavar="N", help="non-embedding parameters, e.g. 1e9 (MoE: all)")
    parser.add_argument(
        "--config", help="in place of N: a config of stepstack, or a transformers config.json or folder"
    )
    parser.add_argument("--tokens", type=float, metavar="D", help="training tokens, e.g. 100e9")
    parser.add_argument("--sequence", type=int, default=2048, metavar="T", help="tokens of a sequence (2048)")
    parser.add_argument("--multiple", type=int, default=1, help="a batch is a multiple of so many sequences")
    parser.add_argument("--loss", type=float, metavar="L", help="final loss, which some laws' batch depends on")
    _common(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    fit = actions.add_parser("fit", help="optima, surfaces and power laws of tables of runs")
    fit.add_argument("tables", nargs="+", type=Path, metavar="TABLE.csv", help="a row a run, losses of nan diverged")
    for name, default in (("params", "N"), ("tokens", "D"), ("lr", "lr"), ("batch", "bs"), ("loss", "loss")):
        fit.add_argument(f"--{name}-column", default=default, metavar="NAME", help=f"default: {default}")
    fit.add_argument("--model-column", default="", metavar="NAME", help="tells models apart that share N and D")
    fit.add_argument("--sequence", type=int, default=TOKENS, metavar="T", help="batches count sequences of T tokens")
    fit.add_argument("--window", type=float, default=0.02, help="excess loss of the runs that shape a surface (0.02)")
    fit.add_argument("--tolerance", type=float, default=0.0025, help="excess loss of near-best runs (0.0025)")
    fit.add_argument("--draws", type=int, default=1000, help="draws of the bootstrap; 0: none")
    fit.add_argument("--batch-of-params", action="store_true", help="let the batch depend on N too")
    fit.add_argument("--svg", type=Path, metavar="FILE", help="write the contour plots alone")
    _common(fit)
    released = actions.add_parser("released", help="reproduce the paper on the authors' released tables")
    released.add_argument("folder", type=Path, help="data/ of github.com/step-law/steplaw")
    released.add_argument("--record", action="store_true", help="keep the figures in evals/results, for the tables")
    _common(released)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="everything, on stdout")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")


def run(args: argparse.Namespace) -> int:
    return {"advise": _advise, "fit": _fit, "released": _released}[args.action or "advise"](args)


def _advise(args: argparse.Namespace) -> int:
    from recipes.steplaw.analysis import figures
    from stepstack.planning.steplaw import advice
    from stepstack.report.html import Report

    advised = advice.advise(_point(args), args.sequence, args.multiple)
    if args.html:
        report = Report("Step Law")
        report.table("Advice", ("", "value"), advice.rows(advised))
        if advised.warnings:
            report.table("Warnings", ("",), [(line,) for line in advised.warnings])
        report.table(
            "Published laws", ("law", "peak learning rate", "batch, tokens", ""), advice.law_rows(advised.others)
        )
        report.figures(
            "Laws by training tokens", list(zip(("learning rate", "batch"), figures.law_curves(advised), strict=True))
        )
        report.write(args.html)
    if args.json:
        print(json.dumps(dataclasses.asdict(advised), indent=1))
        return 0
    _print("Step Law (arXiv 2503.04715)", ("", ""), advice.rows(advised))
    for line in advised.warnings:
        print(f"warning: {line}")
    _print("Published laws", ("law", "peak lr", "batch, tokens", ""), advice.law_rows(advised.others))
    return 0


def _fit(args: argparse.Namespace) -> int:
    from recipes.steplaw.analysis import summary
    from stepstack.planning.steplaw import grids

    names = {n: getattr(args, f"{n}_column") for n in ("params", "tokens", "lr", "batch", "loss", "model")}
    read = grids.read(args.tables, grids.Columns(**names, sequence=args.sequence))
    facts = summary.summarise(
        read,
        window=args.window,
        tolerance=args.tolerance,
        draws=args.draws,
        batch_of_params=args.batch_of_params,
        track=_bar,
    )
    if args.html:
        summary.page(", ".join(path.name for path in args.tables), facts, read, args.html)
    if args.svg:
        summary.sheet(facts, read, args.svg)
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    _print("Grids", *summary.grid_rows(facts))
    _print("Power laws", *summary.law_rows(facts))
    return 0


def _released(args: argparse.Namespace) -> int:
    from recipes.steplaw.analysis import released, tables
    from stepstack.config import ROOT
    from stepstack.report import jsonl
    from stepstack.report.formats import render
    from stepstack.report.provenance import provenance

    facts = released.reproduce(args.folder, _bar)
    facts["provenance"] = provenance()
    if args.record:
        file = ROOT / "evals" / "results" / "steplaw-released.json"
        jsonl.write_json_atomic(file, facts)
    if args.html:
        released.page(args.folder, facts, args.html)
    print(json.dumps(facts, indent=1) if args.json else render(tables.released_tables(facts), "md"))
    return 0


def _point(args: argparse.Namespace) -> LawInputs:
    """N and D as given, else of the config. ConfigError where one is said twice or not at all."""
    from stepstack.config import ConfigError
    from stepstack.planning.steplaw import count
    from stepstack.planning.steplaw.laws import LawInputs

    if (args.params is None) == (args.config is None):
        raise ConfigError("give either --params or --config")
    params, tokens, flops = args.params, args.tokens, None
    if args.config is not None and Path(args.config).exists() and not args.config.endswith((".yaml", ".yml")):
        counted = count.read(Path(args.config))
        params, flops = float(counted.non_embedding), counted.flops_per_token(args.sequence)
    elif args.config is not None:
        from recipes.protocol import load_config

        scale = load_config(args.config).scale
        params, tokens = scale.params, tokens or scale.tokens
        if params is None:
            raise ConfigError(f"--config {args.config}: its recipe does not say how many parameters; give --params")
    if tokens is None:
        raise ConfigError("give --tokens: how many the model is trained on")
    return LawInputs(params, tokens, flops or 6.0 * params, args.loss)


def _print(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table

    from stepstack.terminal import console

    table = Table(title=title, title_justify="left", show_header=any(head))
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    out = console()
    out.width = out.width if out.is_terminal else 200  # in a pipe nothing is cut
    out.print(table)


def _bar(names: Sequence[str]) -> Iterable[Any]:
    """On stderr: it must not get into JSON."""
    from rich.progress import track

    from stepstack.terminal import console

    return track(names, "fitting", console=console(stderr=True), transient=True)
