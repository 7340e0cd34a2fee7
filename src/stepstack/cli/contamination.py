"""`stepstack contamination`: which questions of evaluation tasks the training data holds."""

from __future__ import annotations

import argparse

from stepstack.cli.common import add_config, words

HELP = "which questions of evaluation tasks the training data holds"


def options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--tasks", default="", help="names or files, separated by commas; default: the config's evals")
    parser.add_argument("--ngram", type=int, default=13, help="words in a row that count as overlap")


def run(args: argparse.Namespace) -> int:
    from recipes import protocol
    from stepstack.harness.suite import LM_EVAL
    from stepstack.harness.task import DATA, load
    from stepstack.harness.training import contamination
    from stepstack.report import jsonl

    cfg = protocol.load_config(args.name, args.overrides)
    own = protocol.load(cfg.recipe).tasks(cfg)
    names = words(args.tasks) or [name for name in cfg.evals if not name.startswith(LM_EVAL)]
    training = {cfg.name: [problem.text for problem in load("train", own).rows(DATA)]}
    overlap = contamination.report(training, [load(name, own) for name in names], DATA, n=args.ngram)
    file = cfg.folder / "contamination.json"
    jsonl.write_json_atomic(file, overlap)
    print(contamination.markdown(overlap) + f"\n{file}")
    return 0
