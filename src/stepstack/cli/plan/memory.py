"""`stepstack plan memory`: what a config's DiT costs at a size and a length."""

from __future__ import annotations

import argparse
from dataclasses import replace

HELP = "tokens, FLOPs, memory and seconds of a step of a Step-Video DiT"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a config of the recipe stepvideo: its DiT and its machines")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than any file")
    parser.add_argument("--frames", type=int, help="frames of a video; default: those of the config")
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="in pixels; default: the first of the config's")
    parser.add_argument("--vae", choices=("config", "step-video"), default="config", help="VAE that makes the latents")
    parser.add_argument("--tflops", type=float, default=989.0, help="peak TFLOP/s of a GPU in bfloat16 (H100: 989)")
    parser.add_argument(
        "--mfu", type=float, default=0.32, help="share of it reached, no recomputation; the paper's: 0.32"
    )


def run(args: argparse.Namespace) -> int:
    from recipes.protocol import load_config
    from recipes.stepvideo.config import Config
    from stepstack import config
    from stepstack.planning.memory import FP32, STEP_VIDEO, cost, tokens

    cfg = load_config(args.name, args.overrides, kind=Config)
    try:
        height, width = (int(part) for part in args.size.split("x")) if args.size else cfg.sizes[0]
    except ValueError:
        raise config.ConfigError(f"--size {args.size}: write HEIGHTxWIDTH, such as 544x992") from None
    frames, vae = args.frames or cfg.frames, STEP_VIDEO if args.vae == "step-video" else cfg.latents
    dit = cfg.dit_shape(vae)
    machine = replace(cfg.machine(cfg.launch.processes), tflops=args.tflops, mfu=args.mfu)
    costs = cost(dit, tokens(frames, height, width, vae), machine)
    passes = cfg.batch / (machine.gpus // machine.context * machine.micro)
    note = "" if cfg.text.type == "words" else ", with Step-Video's encoders"
    stride = " x ".join(map(str, vae.stride))
    for key, value in (
        ("parameters", f"{dit.parameters:,}{note}"),
        ("tokens of a video", f"{costs.tokens:,} ({frames} frames of {height} x {width}, VAE {stride})"),
        ("forward, linear", f"{costs.linear / 1e15:.3g} PFLOP"),
        ("forward, attention", f"{costs.attention / 1e15:.3g} PFLOP ({costs.attention / costs.forward:.0%})"),
        ("weights, gradients, moments", f"{costs.states / 2**30:.3g} GiB a GPU, sharded over {machine.gpus}"),
        ("tokens of a GPU", f"{costs.shard:,} a video, {machine.context} GPUs share one, {machine.micro} at a time"),
        ("activations", f"{costs.activations / 2**30:.3g} GiB a GPU, {'recomputed' if machine.again else 'kept'}"),
        (
            "a step, by arithmetic",
            f"{passes * costs.seconds:.3g} s of {cfg.batch} videos, {args.mfu:.0%} of {args.tflops:g} TFLOP/s",
        ),
    ):
        print(f"{key:32} {value}")
    if cfg.launch.file.startswith("fsdp2"):
        whole = FP32 * dit.parameters / 2**30
        print(f"{'host memory of the head':32} {whole:.3g} GiB for one whole copy while it loads, none elsewhere")
    return 0
