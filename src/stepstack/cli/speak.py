"""`stepstack speak`: a text becomes a WAV."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stepstack.cli.common import add_config, quiet_libraries

if TYPE_CHECKING:
    from recipes.stepaudio.config import Config

HELP = "a text becomes a WAV, by a trained model of the recipe stepaudio"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--text", required=True, help="words to say")
    parser.add_argument("--speaker", default="heart", help="name of a speaker that the model learned")
    parser.add_argument("--tags", default="", help="tag before the text, such as (fast1)")
    voice = "recording of the voice that is to speak, for a published model; its words in --reference-text"
    parser.add_argument("--reference", type=Path, metavar="WAV", help=voice)
    parser.add_argument("--reference-text", default="", help="words of --reference")
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
    from stepstack.config import ConfigError

    cfg = load_config(args.name, args.overrides, kind=Config)
    from recipes.stepaudio.model import say
    from recipes.stepaudio.speaking.stream import stream
    from stepstack.models.lm.config import Pretrained

    quiet_libraries()
    line, model = Line(args.text, args.speaker, args.tags), args.model or cfg.folder / "model"
    if isinstance(cfg.model, Pretrained):
        return say_published(args, cfg, model)
    if args.reference is not None:
        raise ConfigError("--reference gives a published model its voice: the tiny one knows speakers by name")
    if args.stream:
        print(stream(cfg, line, model, args.out, args.temperature, args.seed).say(args.out))
    else:
        print(say(cfg, line, model, args.out, args.temperature, args.seed))
    return 0


def say_published(args: argparse.Namespace, cfg: Config, model: Path) -> int:
    """The same by a published model, whose voice may be that of a recording."""
    from recipes.stepaudio.released.model import say
    from stepstack.config import ConfigError
    from stepstack.generation.prompts import Recording, SpeechPrompt

    if args.stream:
        raise ConfigError("--stream plays the offline codec: released.decoder is given whole turns: leave --stream out")
    if (args.reference is None) != (not args.reference_text):
        raise ConfigError("--reference and --reference-text belong together: give the recording and its words")
    voice = None if args.reference is None else Recording(args.reference_text, args.reference)
    speaker = args.speaker if voice is None else ""
    prompt = SpeechPrompt(args.text, speaker, args.tags, voice)
    print(say(cfg, prompt, model, args.out, args.temperature, args.seed))
    return 0
