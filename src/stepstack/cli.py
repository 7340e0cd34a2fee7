"""The command line: every command is a function of a few lines."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from stepstack import __version__, config
from stepstack.config import CONFIGS, ConfigError

# The user's to mend: shown without a traceback. FloatingPointError: training met NaN.
MANUAL = """StepFun's published training systems as recipes that run.

  stepstack config                              the menu: every file in configs/
  stepstack config orz-tiny --explain           every value, and the file that set it
  stepstack launch orz-tiny seed=1 name=trial   train; killed, the same line goes on
  stepstack launch orz-32b --dry-run            the accelerate line that would be typed
  stepstack eval orz-tiny name=trial seed=1     score the trained model on held-out problems
"""

EXPECTED = (ConfigError, ValueError, FileNotFoundError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int:
    top = parser()
    args, rest = top.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or "=" not in word or "overrides" not in args]
    if strange:
        top.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:  # argparse takes a list of words in one piece only; overrides may also follow a flag
        args.overrides = [*args.overrides, *rest]
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        return args.run(args)
    except EXPECTED as error:
        if args.verbose:
            raise
        hint = " (where: stepstack --verbose)" if type(error) is ValueError else ""
        print(f"stepstack {args.command}: {error}{hint}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="stepstack", description=MANUAL, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--verbose", action="store_true", help="log decisions, and show tracebacks of expected errors")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help: str, named: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        if named:
            sub.add_argument("name", help="a config: the stem of a file in configs/, or a path")
            sub.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than any file")
        return sub

    launch = command("launch", _launch, "type the `accelerate launch` line of a config (what `make train` does)")
    launch.add_argument("--dry-run", action="store_true", help="print the line only")
    launch.add_argument("--rank", type=int, help="this machine's number, where SLURM does not say it")
    launch.add_argument("--head", help="address of machine 0, where SLURM does not say it")
    train = command("train", _train, "train in this process (what the launch line runs in each process)")
    train.add_argument("--dry-run", action="store_true", help="check the config and print what a run would do")
    train.add_argument("--stop-after", type=int, metavar="STEP", help="save and stop after this step; resumable")
    show = command("config", _config, "print a config as resolved; without NAME, the menu", named=False)
    show.add_argument("name", nargs="?")
    show.add_argument("overrides", nargs="*", metavar="a.b.c=value")
    show.add_argument("--explain", action="store_true", help="with the file or flag that set each value")
    command("data", _data, "prepare the data of a config, with a manifest of hashes")
    score = command("eval", _eval, "evaluate a config's model, or any folder in its place")
    score.add_argument("--model", help="Hugging Face folder; default: runs/<name>/model")
    score.add_argument("--split", default="test", choices=("train", "select", "test"))
    score.add_argument("--samples", type=int, default=1, help="rollouts a question (avg@k)")
    command("report", _report, "write runs/<name>/report.html anew, also while the run goes on")
    command("record", _record, "keep a finished run's figures in evals/results, for the tables")
    table = command("table", _table, "generate the tables in the READMEs from evals/results", named=False)
    table.add_argument("--check", action="store_true", help="change nothing; fail when a table is stale")
    bench = command("bench", _bench, "measure against a peer in the same run; writes evals/results", named=False)
    bench.add_argument("bench", choices=("rl",))
    bench.add_argument("options", nargs="*", metavar="key=value")
    return top


def _launch(args: argparse.Namespace) -> int:
    from stepstack.core import launch

    loaded = config.load(args.name, args.overrides)
    return launch.run(loaded, args.name, args.overrides, rank=args.rank, head=args.head, dry_run=args.dry_run)


def _train(args: argparse.Namespace) -> int:
    loaded = config.load(args.name, args.overrides)
    recipe = config.recipe_module(loaded.recipe)
    if args.dry_run:
        for key, value in recipe.describe(loaded).items():
            print(f"{key:32} {value}")
        return 0
    from stepstack.core.run import Run

    quiet_libraries()
    recipe.train(Run(loaded, stop_after=args.stop_after))
    return 0


def _config(args: argparse.Namespace) -> int:
    if args.name is None:
        for path in sorted(CONFIGS.glob("*.yaml")):
            first = path.read_text().partition("\n")[0]
            print(f"{path.stem:20} {first.removeprefix('#').strip()}")
        return 0
    resolved = config.resolve(args.name, args.overrides)
    built = config.build(config.recipe_module(resolved.values["recipe"]).Config, resolved)
    for key, value, source in config.explain(built, resolved):
        print(f"{key} = {value}" + (f"   # {source}" if args.explain else ""))
    return 0


def _data(args: argparse.Namespace) -> int:
    loaded = config.load(args.name, args.overrides)
    print(config.recipe_module(loaded.recipe).prepare(loaded))
    return 0


def _eval(args: argparse.Namespace) -> int:
    from stepstack.core.run import Run

    loaded = config.load(args.name, args.overrides)
    quiet_libraries()
    folder = Path(args.model) if args.model else Run.folder(loaded) / "model"
    print(config.recipe_module(loaded.recipe).evaluate_model(loaded, folder, args.samples, args.split))
    return 0


def _report(args: argparse.Namespace) -> int:
    from stepstack.core.run import Run

    loaded = config.load(args.name, args.overrides)
    print(config.recipe_module(loaded.recipe).write_report(Run.folder(loaded)))
    return 0


def _record(args: argparse.Namespace) -> int:
    from stepstack.core.run import Run
    from stepstack.report import tables

    loaded = config.load(args.name, args.overrides)
    print(tables.record(Run.folder(loaded)))
    return 0


def _table(args: argparse.Namespace) -> int:
    from stepstack.report import tables

    return tables.generate(check=args.check)


def _bench(args: argparse.Namespace) -> int:
    from stepstack import bench

    return bench.main(args.bench, args.options)


def quiet_libraries() -> None:
    """Library chatter that a user can do nothing about."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
