"""`stepstack profile pipeline`: times of a config's layers on this device, by which pipelines are planned."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from stepstack.config import ConfigError

HELP = "seconds and bytes of a model's layers, for `stepstack plan pipeline`"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a name or path of a config of orz, perception or mdocsum")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than the file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the profile, .json")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256, 512], help="sizes of text")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 2, 4], help="numbers of pictures")
    parser.add_argument("--picture", default="224x224", metavar="WIDTHxHEIGHT", help="size of a picture in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="times are medians of so many")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")


def run(args: argparse.Namespace) -> int:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", args.picture):
        raise ConfigError(f"--picture {args.picture}: give width and height in pixels, such as 224x224")
    if args.rounds < 1:
        raise ConfigError(f"--rounds {args.rounds}: measure at least once")
    if args.out.suffix != ".json":
        raise ConfigError(f"--out {args.out}: must end in .json")
    import torch

    from recipes.protocol import load_config, skeleton_of
    from stepstack.parallel import layer_times, link_times

    cfg = load_config(args.config, args.overrides)
    device = torch.device(args.device)
    width, height = map(int, args.picture.split("x"))
    sizes = layer_times.Sizes(tuple(args.tokens), tuple(args.pictures), (width, height))
    profile = layer_times.measure(
        skeleton_of(cfg),
        sizes,
        device,
        autocast=cfg.precision == "bf16",
        rounds=args.rounds,
        link=link_times.measure() if device.type == "cpu" else None,
        name=cfg.name,
    )
    profile.save(args.out)
    for line in layer_times.describe(profile):
        print(line)
    print(f"-> {args.out}")
    return 0
