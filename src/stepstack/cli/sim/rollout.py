"""`stepstack sim rollout`: six pipelines and all dispatch policies of a file, and the paper's experiments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepstack.config import ROOT, ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

HELP = "time of RL pipelines and of dispatch policies on a plan's devices, simulated (StreamRL)"
RECORD = ROOT / "evals" / "results" / "streamrl.json"
FORMATS = (".svg", ".png")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, help="the file of `stepstack plan rollout`: see configs/plans")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than the file")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="Gantt chart of the pipelines, .svg or .png")
    parser.add_argument("--published", action="store_true", help="in place of a file: the experiments of the paper")
    parser.add_argument("--seeds", type=int, default=3, help="draws of lengths in --published (3)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--record", action="store_true", help="keep --published in evals/results/streamrl.json, for the tables"
    )


def run(args: argparse.Namespace) -> int:
    from rich.progress import Progress

    from stepstack.terminal import console

    if args.published == (args.file is not None):
        raise ConfigError("say what to simulate: a FILE of configs/plans, or --published")
    if args.picture and args.published:
        raise ConfigError("--picture draws the pipelines of a FILE: leave --published out")
    if args.picture and args.picture.suffix not in FORMATS:
        raise ConfigError(f"--picture {args.picture}: must end in {' or '.join(FORMATS)}")
    if args.record and not args.published:
        raise ConfigError("--record keeps the experiments of the paper: add --published")
    if args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds}: draw at least once")
    with Progress(console=console(stderr=True), transient=True) as bar:
        progress = _progress(bar)
        return _published(args, progress) if args.published else _file(args, progress)


def _progress(bar: Progress) -> Callable[[str, int], Callable[[], None]]:
    def progress(what: str, units: int) -> Callable[[], None]:
        task = bar.add_task(what, total=units)
        return lambda: bar.advance(task)

    return progress


def _file(args: argparse.Namespace, progress: Callable[[str, int], Callable[[], None]]) -> int:
    from stepstack import config
    from stepstack.planning.rollout.job import RolloutJob
    from stepstack.report import jsonl
    from stepstack.simulation.rollout import figures, study
    from stepstack.terminal import console

    job = config.read(RolloutJob, args.file, args.overrides)
    cap = study.decode(job).cap
    outcomes = study.outcomes(job, progress("pipelines", len(job.simulation.pipelines)))
    results = study.run(job, outcomes, progress("dispatch", len(study.POLICIES)))
    _show(results, args.json, study.tables(results))
    if args.picture:
        picture = figures.encode(figures.gantt(outcomes, cap), args.picture.suffix[1:])
        jsonl.write_bytes_atomic(args.picture, picture)
        console(stderr=True).print(f"-> {args.picture}")
    return 0


def _published(args: argparse.Namespace, progress: Callable[[str, int], Callable[[], None]]) -> int:
    from stepstack.report import jsonl
    from stepstack.simulation.rollout import published

    results = published.run(args.seeds, progress)
    if args.record:
        jsonl.write_json_atomic(RECORD, results)
    _show(results, args.json, published.tables(results))
    return 0


def _show(results: dict[str, Any], as_json: bool, tables: Sequence[tuple[str, list[str], list[list[str]]]]) -> None:
    from rich.table import Table

    from stepstack.terminal import console

    if as_json:
        print(json.dumps(results, indent=1))
        return
    out = console()
    for title, head, rows in tables:
        table = Table(*head, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        out.print(table)
