"""`stepstack generate`: a worker process that samples rollouts for a trainer, here or on another machine."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from pathlib import Path

from stepstack.cli.common import add_config, quiet_libraries
from stepstack.config import ConfigError
from stepstack.core.parent import end_with_parent

HELP = "sample rollouts for a trainer that streams them (a config with stream:), here or on another machine"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--connect", required=True, metavar="tcp://HOST:PORT", help="address that the trainer binds")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the trainer's stream/token; default: of the run's folder here"
    )
    parser.add_argument("--worker", default="", metavar="NAME", help="name of this worker in metrics and logs")
    parser.add_argument("--cores", metavar="A,B", help="processor cores that this worker runs on (Linux)")
    parser.add_argument("--end-with-parent", action="store_true", help="end when the starting process is gone")


def run(args: argparse.Namespace) -> int:
    from recipes import protocol
    from stepstack.generation.service.config import FOLDER
    from stepstack.rl.config import PpoConfig

    cfg = protocol.load_config(args.name, args.overrides, kind=PpoConfig)
    if cfg.stream is None:
        raise ConfigError(f"{args.name} streams no rollouts: add stream: {{}} to it, or stream.staleness=0")
    token = args.token_file or cfg.folder / FOLDER / "token"
    if not token.is_file():
        raise ConfigError(
            f"{token} does not exist: start the trainer, or give --token-file, a copy of its stream/token"
        )
    if args.end_with_parent:
        end_with_parent()
    if args.cores:
        os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    import torch

    from stepstack.generation.service.worker import Worker
    from stepstack.rl.streaming import identity

    quiet_libraries()
    torch.set_num_threads(cfg.launch.threads)
    device = torch.device("cuda" if torch.cuda.is_available() and not cfg.launch.file.startswith("cpu") else "cpu")
    name = args.worker or f"{socket.gethostname()}-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="stepstack-worker-") as folder:
        Worker(
            args.connect,
            token.read_text().strip(),
            identity(cfg),
            name,
            cfg.stream.patience,
            cfg.rollout.sampling,
            Path(folder),
            lambda source: protocol.sampler_of(cfg, source, device),
        ).run()
    return 0
