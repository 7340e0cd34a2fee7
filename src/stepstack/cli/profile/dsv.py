"""`stepstack profile dsv`: measure from which sparsity DSV pays on this device."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "sparsity from which DSV pays on this device"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grids", nargs="+", metavar="FxHxW", help="latent frames x rows x columns, in tokens")
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--head-dim", type=int, required=True)
    parser.add_argument("--cube", default="4x4x4", metavar="FxHxW", help="the config's cube")
    parser.add_argument("--selector", choices=("low_rank", "pooled"), default="low_rank")
    parser.add_argument("--rank", type=int, default=16, help="rank of the predictors")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--out", type=Path, default=Path("dsv-speed.json"), help="for dispatch.file of the config")


def run(args: argparse.Namespace) -> int:
    import torch

    from stepstack.models.video.dsv import speed

    device = torch.device(args.device)
    shape = speed.AttentionShape(
        device=speed.device_name(device),
        dtype=args.dtype,
        heads=args.heads,
        head_dim=args.head_dim,
        cube=speed.parse_grid(args.cube),
        selector=args.selector,
        rank=args.rank,
    )
    profile = speed.measure(shape, [speed.parse_grid(grid) for grid in args.grids], device)
    profile.save(args.out)
    for line in profile.lines():
        print(line)
    print(f"-> {args.out}")
    return 0
