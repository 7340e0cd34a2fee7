"""`stepstack speak`: a text becomes a WAV."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepstack.cli.common import add_config, quiet_libraries

HELP = "a text becomes a WAV, by a trained model of the recipe stepaudio"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--text", required=True, help="words to say")
    parser.add_argument("--speaker", default="heart", help="name of a speaker that the model learned")
    parser.add_argument("--tags", default="", help="tag before the text, such as (fast1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="temperature of the sampling; 0: the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--model", type=Path, help="folder; default: runs/<name>/model")
    stream = "write the sound as it is made, and print the time to the first of it"
    parser.add_argument("--stream", action="store_true", help=stream)
    parser.add_argument("--out", type=Path, default=Path("speech.wav"), help="file to write")


def run(args: argparse.Namespace) -> int:
    from data.drawn.sentences import Line
    from recipes.protocol import load_config
    from recipes.stepaudio.config import Config

    cfg = load_config(args.name, args.overrides, kind=Config)
    from recipes.stepaudio.model import say
    from recipes.stepaudio.stream import stream

    quiet_libraries()
    line, model = Line(args.text, args.speaker, args.tags), args.model or cfg.folder / "model"
    if args.stream:
        print(stream(cfg, line, model, args.out, args.temperature, args.seed).say(args.out))
    else:
        print(say(cfg, line, model, args.out, args.temperature, args.seed))
    return 0
