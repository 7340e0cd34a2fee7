"""`stepstack plan memory`: least memory and disk of any config, and what a DiT costs at a size and a length."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.stepvideo.config import Config as VideoConfig
    from stepstack.config import Footprint, RunConfig

HELP = "least memory and disk of a config; of a Step-Video DiT also tokens, FLOPs and seconds of a step"
CLIP_OPTIONS = ("frames", "size")  # what only a config of the recipe stepvideo takes


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a config: its models and its machines")
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
    from stepstack.config import ConfigError

    cfg = load_config(args.name, args.overrides)
    if isinstance(cfg, Config):
        return clips(args, cfg)
    if given := [name for name in CLIP_OPTIONS if getattr(args, name) is not None]:
        raise ConfigError(
            f"--{given[0]} is about clips: {args.name} is a config of the recipe {cfg.recipe}; leave it out"
        )
    return models(cfg)


def models(cfg: RunConfig) -> int:
    """Print what a config's models take. ConfigError where it does not know their size."""
    from stepstack.config import ConfigError

    sharded = cfg.launch.file.startswith("fsdp2")
    shards = cfg.launch.processes if sharded else 1
    need = cfg.footprint(shards)
    if need is None:
        raise ConfigError(
            f"{cfg.name}: the size of its model is not known: give model.path a name that models/lm/config.py knows, "
            "or a local folder of a language model"
        )
    place = f"sharded over {shards}" if sharded else "a whole copy on each"
    print(f"{'weights, gradients, moments':32} {need.states / 2**30:.3g} GiB a GPU, {place}")
    print(f"{'activations, engine':32} on top, not estimated")
    print(
        f"{'a checkpoint':32} {need.checkpoint / 2**30:.3g} GiB on disk; {max(1, cfg.save.keep)} stay, one is written"
    )
    return host_memory(need, sharded)


def host_memory(need: Footprint, sharded: bool) -> int:
    if sharded:
        head = f"{need.host / 2**30:.3g} GiB for whole copies while it loads, none elsewhere"
        print(f"{'host memory of the head':32} {head}")
    return 0


def clips(args: argparse.Namespace, cfg: VideoConfig) -> int:
    """Print what a DiT costs."""
    from stepstack import config
    from stepstack.planning.memory import STEP_VIDEO, cost, tokens

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
    return host_memory(cfg.footprint(machine.gpus), cfg.launch.file.startswith("fsdp2"))
