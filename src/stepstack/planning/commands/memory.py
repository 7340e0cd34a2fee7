"""`stepstack plan memory`: what a config's DiT costs at a size and a length."""

from __future__ import annotations

import argparse

HELP = "tokens, FLOPs, memory and seconds of a step of a Step-Video DiT"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a config of the recipe stepvideo: its DiT and its machines")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than any file")
    parser.add_argument("--frames", type=int, default=102, help="of a video; whole chunks of 17, or 1")
    parser.add_argument("--size", default="544x992", metavar="HEIGHTxWIDTH", help="in pixels")
    parser.add_argument("--tflops", type=float, default=989.0, help="of a GPU at its peak in bfloat16 (H100: 989)")
    parser.add_argument(
        "--mfu", type=float, default=0.32, help="share of it reached, no recomputation; the paper's: 0.32"
    )


def run(args: argparse.Namespace) -> int:
    from stepstack import config
    from stepstack.planning.video_memory import Dit, Machine, cost, tokens

    values = config.resolve(args.name, args.overrides).values
    if values["recipe"] != "stepvideo":
        raise config.ConfigError(f"{args.name} trains no video DiT: its recipe is {values['recipe']}")
    try:
        height, width = (int(part) for part in args.size.split("x"))
    except ValueError:
        raise config.ConfigError(f"--size {args.size}: write HEIGHTxWIDTH, such as 544x992") from None
    known = {key: value for key, value in values.get("model", {}).items() if key in Dit.__dataclass_fields__}
    launch = config.Launch(**values.get("launch", {}))
    dit, trained = Dit(**known), values.get("dit", {})
    machine = Machine(
        gpus=launch.processes, context=values.get("context", 1), tflops=args.tflops, mfu=args.mfu,
        micro=values.get("micro", 1), ema=bool(trained.get("ema", 0)), precision=values.get("precision", "no"),
        again=trained.get("gradient_checkpointing", False),
    )  # fmt: skip
    made = cost(dit, tokens(args.frames, height, width), machine)
    batch = values.get("batch", machine.gpus // machine.context * machine.micro)
    passes = batch / (machine.gpus // machine.context * machine.micro)
    for key, value in (
        ("parameters", f"{dit.parameters:,} with Step-Video's channels and encoders"),
        ("tokens of a video", f"{made.tokens:,} ({args.frames} frames of {height} x {width}, VAE 8 x 16 x 16)"),
        ("forward, linear", f"{made.linear / 1e15:.2f} PFLOP"),
        ("forward, attention", f"{made.attention / 1e15:.2f} PFLOP ({made.attention / made.forward:.0%})"),
        ("weights, gradients, moments", f"{made.states / 2**30:.1f} GiB a GPU, sharded over {machine.gpus}"),
        ("tokens of a GPU", f"{made.shard:,} a video, {machine.context} GPUs share one, {machine.micro} at a time"),
        ("activations", f"{made.activations / 2**30:.1f} GiB a GPU, {'recomputed' if machine.again else 'kept'}"),
        (
            "a step, by arithmetic",
            f"{passes * made.seconds:.1f} s of {batch} videos, {args.mfu:.0%} of {args.tflops:g} TFLOP/s",
        ),
    ):
        print(f"{key:32} {value}")
    return 0
