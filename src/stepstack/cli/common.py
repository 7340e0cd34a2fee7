"""Options and helpers that several commands share."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def add_config(parser: argparse.ArgumentParser) -> None:
    """A config and overrides of its values."""
    parser.add_argument("name", help="a config: the stem of a file in configs/, or a path")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="stronger than any file")


def add_data(parser: argparse.ArgumentParser) -> None:
    from stepstack.config import ROOT

    folder = ROOT / "evals" / "data"
    parser.add_argument("--data", type=Path, default=folder, help="folder of benchmark files; default: evals/data")


def words(text: str) -> list[str]:
    """A list that was written with commas."""
    return [word for word in text.split(",") if word]


def quiet_libraries() -> None:
    """Turn off library chatter that a user can do nothing about."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
