"""`stepstack sample`: a picture and a prompt become a clip, GIF and MP4."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepstack.cli.common import add_config, quiet_libraries

HELP = "a picture and a prompt become a clip, GIF and MP4"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--image", type=Path, required=True, help="the first frame")
    parser.add_argument("--prompt", required=True, help="words for what happens in the clip")
    parser.add_argument("--motion", type=float, default=5.0, help="motion score: 0 still, 5 usual, 20 wild")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--crop", action="store_true", help="cut a picture of another shape")
    parser.add_argument("--model", help="folder; default: runs/<name>/model")
    parser.add_argument("--out", type=Path, default=Path("clip"), help="files to write, without ending")


def run(args: argparse.Namespace) -> int:
    from recipes.protocol import load_config
    from recipes.stepvideo.config import Config

    cfg = load_config(args.name, args.overrides, kind=Config)
    from recipes.stepvideo.generation.sampling import SampleArgs, sample
    from stepstack.core.inputs import refuse_others

    if args.model is None:
        refuse_others(cfg.folder, cfg)
    quiet_libraries()
    values = {key: vars(args)[key] for key in ("image", "prompt", "motion", "seed", "crop", "model", "out")}
    for file in sample(cfg, SampleArgs(**values)):
        print(file)
    return 0
