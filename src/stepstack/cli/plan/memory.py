"""`stepstack plan memory`: what a config's DiT costs at a size and a length."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.stepvideo.config import Config
    from stepstack.planning.memory import Dit, Vae

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
    from stepstack.planning.memory import Machine, cost, tokens

    cfg = load_config(args.name, args.overrides, kind=Config)
    try:
        height, width = (int(part) for part in args.size.split("x")) if args.size else cfg.sizes[0]
    except ValueError:
        raise config.ConfigError(f"--size {args.size}: write HEIGHTxWIDTH, such as 544x992") from None
    frames, vae = args.frames or cfg.frames, vae_of(cfg, args.vae)
    dit = dit_of(cfg, vae)
    machine = Machine(
        gpus=cfg.launch.processes,
        context=cfg.context,
        tflops=args.tflops,
        mfu=args.mfu,
        micro=cfg.micro,
        ema=bool(cfg.dit.ema),
        precision=cfg.precision,
        again=cfg.dit.gradient_checkpointing,
    )
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
    return 0


def vae_of(cfg: Config, choice: str) -> Vae:
    """The VAE of the config, or the one of Step-Video."""
    from stepstack.planning.memory import PUBLISHED, STEP_VIDEO, Vae

    if choice == "step-video":
        return STEP_VIDEO
    if cfg.vae.type == "tiny":
        return Vae(stride=cfg.vae.patch, channels=cfg.vae.channels)
    return replace(PUBLISHED[cfg.vae.type], chunk=cfg.vae.chunk)


def dit_of(cfg: Config, vae: Vae) -> Dit:
    from stepstack.planning.memory import Dit

    shape = cfg.model
    dit = Dit(
        layers=shape.layers,
        heads=shape.heads,
        head_width=shape.head_width,
        mlp=shape.mlp,
        with_image=shape.with_image,
        with_motion=shape.with_motion,
        text_tokens=cfg.text.lengths,
        channels=vae.channels,
    )
    return replace(dit, text=cfg.text.widths) if cfg.text.type == "words" else dit
