"""`stepstack launch`: type the `accelerate launch` line of a config (what `make train` does)."""

from __future__ import annotations

import argparse
import shlex
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepstack.cli.common import add_config
from stepstack.config import ConfigError

if TYPE_CHECKING:
    from stepstack.rl.config import PpoConfig

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
    from stepstack.rl.config import PpoConfig

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
    if args.dry_run and isinstance(cfg, PpoConfig) and cfg.stream is not None:
        print(workers_line(cfg, args.name, args.overrides, args.head or "HEAD"))
    report = cfg.folder / "report.html"
    if args.open and status == 0 and not args.dry_run and report.is_file():
        webbrowser.open(report.resolve().as_uri())
    return status


def workers_line(cfg: PpoConfig, name: str, overrides: Sequence[str], head: str) -> str:
    """The line to type for worker processes, or the note that the trainer starts its own."""
    from stepstack.generation.service.config import FOLDER

    assert cfg.stream is not None
    host, _, port = cfg.stream.bind.removeprefix("tcp://").rpartition(":")
    lines = [f"# the trainer starts {cfg.stream.workers} worker processes of its own"] if cfg.stream.workers else []
    if port != "*":
        here = host in ("127.0.0.1", "localhost")
        address = f"tcp://{host if here else head}:{port}"
        lines.append(f"# {'more workers on this machine' if here else 'on each worker machine, once for each engine'}")
        words = [
            "stepstack",
            "generate",
            name,
            "--connect",
            address,
            "--token-file",
            str(cfg.folder / FOLDER / "token"),
        ]
        lines.append(shlex.join([*words, *overrides]))
    return "\n".join(lines)
