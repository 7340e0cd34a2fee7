"""`stepstack ranker`: learn, from a streamed run's rollouts, which prompts get long responses."""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

from stepstack.cli.common import add_config, quiet_libraries
from stepstack.config import ConfigError

HELP = "learn from a streamed run's rollouts which prompts get long responses, for stream.dispatch"
HELD_OUT = 0.2  # share of the prompts by which the ranker is judged
FEWEST = 20  # prompts


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--base", type=Path, help="folder of the base model; default: the run's base/model")
    parser.add_argument("--out", type=Path, help="folder to write; default: the run's ranker/")
    parser.add_argument("--steps", type=int, default=200, help="updates (200)")
    parser.add_argument("--late-share", type=float, default=0.75, help="share of the run's steps, the last ones (0.75)")


def run(args: argparse.Namespace) -> int:
    from recipes import protocol
    from stepstack.rl.config import PpoConfig

    cfg = protocol.load_config(args.name, args.overrides, kind=PpoConfig)
    base, out = args.base or cfg.folder / "base" / "model", args.out or cfg.folder / "ranker"
    if not (base / "config.json").is_file():
        raise ConfigError(f"{base} holds no model: give --base, the folder of the model that the run begins with")
    import torch

    from stepstack.generation.config import HfConfig
    from stepstack.models.lm import pretrained
    from stepstack.models.lm.config import Pretrained
    from stepstack.rl.ranker import LengthRanker, RankerConfig, read_lengths, recall

    quiet_libraries()
    lengths = read_lengths(cfg.folder, args.late_share)
    sampled = replace(cfg, rollout=replace(cfg.rollout, generator=HfConfig()))  # for its prompts: no engine is started
    _, prompts = protocol.sampler_of(sampled, base, torch.device("cpu"))
    known = sorted(problem for problem in lengths if problem in prompts)
    if len(known) < FEWEST:
        raise ConfigError(f"{cfg.folder} has responses of {len(known)} prompts, {FEWEST} are wanted: train it longer")
    random.Random(cfg.seed).shuffle(known)
    held_out, learned = known[: round(HELD_OUT * len(known))], known[round(HELD_OUT * len(known)) :]
    ranker = LengthRanker(pretrained.load(Pretrained(path=str(base))), cfg.seed)
    ranker.fit(
        [prompts[problem].ids for problem in learned],
        [lengths[problem] for problem in learned],
        RankerConfig(steps=args.steps, seed=cfg.seed),
    )
    found = recall(ranker.estimate([prompts[p].ids for p in held_out]), [lengths[p] for p in held_out])
    ranker.save(out)
    print(f"{out}: recall of the longest fifth {found:.2f} on {len(held_out)} held-out prompts of {len(known)}")
    return 0
