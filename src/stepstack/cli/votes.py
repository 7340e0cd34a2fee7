"""`stepstack votes`: which of two models' clips: blind votes, and a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepstack.cli.common import add_data

HELP = "which of two models' clips: blind votes, and a table"


def options(parser: argparse.ArgumentParser) -> None:
    clips = "clips of a model: an evaluation (runs/<name>/evals/<label>/<task>-...), or files named as ti2v_eval's"
    parser.add_argument("a", type=Path, help=clips)
    parser.add_argument("b", type=Path, help="clips of the model that it is compared with")
    parser.add_argument("--out", type=Path, required=True, help="folder of the votes; the same command goes on there")
    kinds = ("ti2v_eval", "speech")
    of = "ti2v_eval: clips of its first frames; speech: spoken answers of two evaluations of one task"
    parser.add_argument("--of", choices=kinds, default="ti2v_eval", help=of)
    voices = "of speech: meta file of the evaluation, whose recordings of the voice are heard too"
    parser.add_argument("--voices", type=Path, metavar="META", help=voices)
    add_data(parser)
    parser.add_argument("--common", action="store_true", help="compare what both have, where one lacks clips")
    table = ("votes", "first_frame")
    parser.add_argument("--table", nargs="?", const="votes", choices=table, help="print and write only")
    parser.add_argument("--port", type=int, default=8765, help="port of the page; 0: a free one")
    parser.add_argument("--seed", type=int, default=0, help="seed of which clip is on the left")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")


def run(args: argparse.Namespace) -> int:
    from data.sets import spoken_pairs, ti2v_eval
    from stepstack.config import ConfigError
    from stepstack.harness.human import pairwise, votes
    from stepstack.terminal import console

    if args.of == "speech":
        if args.table == "first_frame":
            raise ConfigError("--table first_frame looks at clips: sounds have none: give --table")
        pairs = spoken_pairs.pairs(args.a, args.b, args.voices, common=args.common)
        questions = spoken_pairs.questions(pairs)
    else:
        pairs = ti2v_eval.pairs(args.data / ti2v_eval.FOLDER, args.a, args.b, common=args.common)
        questions = ti2v_eval.DIMENSIONS
    study = votes.Study(folder=args.out, pairs=pairs, questions=questions, seed=args.seed)
    judge: pairwise.Judge = ti2v_eval.FirstFrameJudge() if args.table == "first_frame" else votes.Votes(study)
    if args.table is None:
        votes.serve(study, args.port, args.open)
    elif args.table == "votes":
        study.check()
    file = args.out / f"result-{args.table or 'votes'}.json"
    console().print(pairwise.conclude(file, (str(args.a), str(args.b)), pairs, judge))
    print(file)
    return 0
