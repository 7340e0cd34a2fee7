"""`stepstack COMMAND`: finds the commands, reads the words, shows errors that are the user's to mend in one line."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError

from stepstack import __version__
from stepstack.config import ConfigError
from stepstack.generation.types import EngineError

MANUAL = """StepFun's published training systems as recipes that run.

  stepstack config                              the menu: every file in configs/
  stepstack config orz-tiny --explain           every value, its origin and its meaning
  stepstack launch orz-tiny seed=1 name=trial   train; killed, the same line goes on
  stepstack launch orz-32b --dry-run            the accelerate line that would be typed
  stepstack eval orz-tiny name=trial seed=1     score the trained model on held-out problems
  stepstack sample stepvideo-tiny --image a.png --prompt "a red circle moves right"
  stepstack push orz-tiny name=trial seed=1 --repo me/orz-tiny   its model, with its card, to the hub
  stepstack votes clips/a clips/b --out votes   which of two models' clips? blind, in a browser
  stepstack eval orz-32b --tasks aime24,math500 --model Qwen/Qwen2.5-32B
"""

# The user's to mend: shown without a traceback. FloatingPointError: training met NaN. OSError: a file that is missing,
# a full disk, a hub or server that does not answer. SafetensorError: a file of weights that is cut off.
EXPECTED = (ConfigError, ValueError, OSError, SafetensorError, FloatingPointError, EngineError)
OWN = ("main", "common")  # files here that are no commands


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    top = parser()
    if not words:
        top.print_help()
        return 2
    _check_command(top, words)
    args, rest = top.parse_known_args(words)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or "overrides" not in args]
    if unknown:
        keys = [word.lstrip("-").split("=")[0] for word in unknown if word.startswith("--") and "." in word]
        hint = f": a key of the config is given without dashes: {keys[0]}=..." if keys else ""
        top.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if rest:  # argparse takes a list of words in one piece only; overrides may also follow a flag
        args.overrides = [*args.overrides, *rest]
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell says of SIGPIPE
    except EXPECTED as error:
        if args.verbose:
            raise
        hint = " (where: stepstack --verbose)" if type(error) is ValueError else ""
        print(f"stepstack {args.command}: {error}{hint}", file=sys.stderr)
        return 2


def _check_command(top: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """End with an error that suggests a command where the first word is none."""
    name = next((word for word in words if not word.startswith("-")), None)
    names = [path.stem for path in commands(Path(__file__).parent)]
    if name is not None and name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "`stepstack --help` lists the commands"
        top.error(f"no command {name!r}: {hint}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="stepstack", description=MANUAL, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--verbose", action="store_true", help="log decisions, and show tracebacks of expected errors")
    add_commands(top, "stepstack.cli", Path(__file__).parent, "command")
    return top


def commands(folder: Path) -> list[Path]:
    """The files and folders of ``folder`` that are commands."""
    return [path for path in sorted(folder.iterdir()) if not path.stem.startswith(("_", ".")) and path.stem not in OWN]


def add_commands(parser: argparse.ArgumentParser, package: str, folder: Path, dest: str) -> None:
    """A subcommand for each file of ``folder``; a folder in it is a command with subcommands of its own."""
    subparsers = parser.add_subparsers(dest=dest, required=True, metavar=dest.upper())
    for path in commands(folder):
        module = import_module(f"{package}.{path.stem}")
        sub = subparsers.add_parser(path.stem, help=module.HELP, description=module.HELP)
        if path.is_dir():
            add_commands(sub, module.__name__, path, path.stem)
        else:
            module.options(sub)
            sub.set_defaults(run=module.run)
