"""`stepstack launch`: type the `accelerate launch` line of a config (what `make train` does)."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from stepstack.cli.common import add_config
from stepstack.config import ConfigError

HELP = "type the `accelerate launch` line of a config (what `make train` does)"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the line, and what this machine has for it")
    parser.add_argument("--open", action="store_true", help="open the run's report in a browser at the end")
    parser.add_argument("--rank", type=int, help="this machine's number, where SLURM does not say it")
    parser.add_argument("--head", help="address of machine 0, where SLURM does not say it")
    parser.add_argument("--placement", type=Path, metavar="FILE", help="machines by rank (stepstack plan pods --out)")
    parser.add_argument("--host", help="this machine's name in the placement, where it is not its own")


def run(args: argparse.Namespace) -> int:
    from recipes.protocol import load_config
    from stepstack.core import launch, preflight

    cfg = load_config(args.name, args.overrides)
    if args.host and not args.placement:
        raise ConfigError(f"--host {args.host} is a name in a placement: say --placement FILE too")
    placement = launch.Placement(args.placement, args.host) if args.placement else None
    findings = preflight.look(cfg, head=cfg.launch.nodes == 1 or args.rank == 0)
    if not args.dry_run:
        preflight.refuse(findings)
    for finding in findings:
        print(f"# {finding.text}", file=sys.stdout if args.dry_run else sys.stderr)
    status = launch.run(
        cfg, args.name, args.overrides, rank=args.rank, head=args.head, placement=placement, dry_run=args.dry_run
    )
    report = cfg.folder / "report.html"
    if args.open and status == 0 and not args.dry_run and report.is_file():
        webbrowser.open(report.resolve().as_uri())
    return status
